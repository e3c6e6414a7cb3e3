"""The names of ``pypto.language``: those that this implementation has, and those that it only knows of.

``SUPPORTED`` gives the keywords of each callable, so that models can be held against it: they may use nothing
outside of pypto (see :func:`foreign_names`).  ``UNSUPPORTED`` gives the reason and what to do instead; using
such a name in a kernel is an error that says so.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import Span

# ------------------------------------------------------------------------------------------ supported
_INTEGERS = "BOOL INT8 INT16 INT32 INT64 UINT8 UINT16 UINT32 UINT64 INDEX TASK_ID"
_FLOATS = "FP16 BF16 FP32 FP8E4M3FN FP8E5M2 FP8E8M0"
_TYPES = "Tensor Tile Scalar Array Out InOut TaskId"
_ENUMS = "Mem MemorySpace SplitMode Level Role PadValue AtomicType TensorLayout ND NZ"
_UNARY = "neg abs exp log sqrt recip row_sum row_max row_min row_argmax col_sum col_max col_min"
_BINARY = "add sub mul div maximum minimum"
_EXPAND = (
    "row_expand_add row_expand_sub row_expand_mul row_expand_div col_expand_add col_expand_sub col_expand_mul"
)
_AT = "level role optimizations deps no_dep_args dumps allow_early_resolve name_hint windowize"
_SLICE = "input shape offset valid_shape drop_dims pad_value clamp"

# name -> keywords; values that are not called have none
SUPPORTED: dict[str, tuple[str, ...]] = {
    name: tuple(keywords.split())
    for names, keywords in [
        (f"{_INTEGERS} {_FLOATS} {_TYPES} {_ENUMS}", ""),
        ("RUNTIME auto_chunk jit tensor tile array system parse", ""),
        ("dynamic", "name"),
        (_UNARY, "input"),
        ("rsqrt", "input high_precision"),
        (_BINARY, "lhs rhs"),
        (f"{_EXPAND} col_expand_div row_expand col_expand", "lhs rhs"),
        ("cast", "input target_type mode"),
        ("cmp", "lhs rhs cmp_type"),
        ("fillpad", "value pad_value"),
        ("set_validshape", "input rows cols"),
        ("slice", _SLICE),
        ("assemble", "target source offset atomic"),
        ("create_tensor", "shape dtype layout manual_dep init_value"),
        ("full", "shape dtype value"),
        ("arange", "start shape dtype descending"),
        ("reshape", "input shape"),
        ("transpose", "input axis1 axis2"),
        ("read write", ""),
        ("move", "target_memory"),
        ("matmul", "lhs rhs out_dtype a_trans b_trans c_matrix_nz"),
        ("matmul_acc", "acc lhs rhs a_trans b_trans init_cond"),
        ("min max const dim get_block_idx", ""),
        ("at", _AT),
        ("spmd", "sync_start name_hint optimizations deps allow_early_resolve predicate"),
        ("range unroll", ""),
        ("parallel", "chunk chunk_policy"),
        ("pipeline", "stage"),
        ("scope manual_scope", ""),
        ("split", "mode slot_num"),
        ("cross_core_slot", "slot_num"),
    ]
    for name in names.split()
}

# members of pl.array, pl.system and pl.jit
MEMBERS: dict[str, dict[str, tuple[str, ...]]] = {
    "array": {"create": ()},
    "system": {"task_dummy": ("deps",)},
    "jit": {"inline": ("auto_scope",)},
}

# ------------------------------------------------------------------------------------------ unsupported
_LATER = "it is not implemented yet"
_DISTRIBUTED = "distributed programs are not covered"
_OLD_STYLE = "the class style (@pl.program) is older than @pl.jit"
_LANES = "two-lane code written by hand changes the meaning of a region"
_PIPES = "queues between the units are inserted by the compiler"
_OPS = "write it with the supported ops"

# name -> (why, fix)
UNSUPPORTED: dict[str, tuple[str, str]] = {
    name: (why, fix)
    for names, why, fix in [
        ("sort32 mrgsort gather gather_row scatter scatter_update concat MaskPattern", _LATER,
         "write it with the supported ops, or keep this kernel on pypto"),
        ("ci", "it is pypto's other name of arange", "write pl.arange"),
        ("row_expand_max row_expand_min row_expand_expdif col_expand_max "
         "col_expand_min col_expand_expdif row_argmin row_prod col_argmax col_argmin col_prod "
         "expands sum",
         _LATER, _OPS),
        ("load store create_tile create_l1 prefetch paged_gather mscatter mgather", _LATER,
         "use pl.slice and pl.assemble, which load and store inside of a region"),
        ("batch_matmul matmul_bias matmul_mx gemv gemv_acc gemv_bias", _LATER, "use pl.matmul on slices"),
        ("view reinterpret_view transpose_view expand_clone fillpad_expand sel sels relu lrelu prelu cmps",
         _LATER,
         _OPS),
        ("sin cos fmod fmods rem rems tri random and_ ands or_ ors xor xors not_ shl shls shr shrs maxs mins "
         "addc addsc subc subsc part_add part_mul part_max part_min", _LATER, _OPS),
        ("split_aiv aiv_shard aic_gather", _LANES, "use optimizations=[pl.split(pl.SplitMode.UP_DOWN)]"),
        ("tpush_to_aiv tpush_to_aic tpop_from_aic tpop_from_aiv tfree_to_aic tfree_to_aiv "
         "aic_initialize_pipe aiv_initialize_pipe reserve_buffer import_peer_buffer ReservedBuffer "
         "ImportedBuffer AUTO", _PIPES,
         "write one mixed region"),
        ("program function inline func_attr FunctionType InlineFunction yield_ incore auto_incore",
         _OLD_STYLE,
         "write the kernel as a @pl.jit function"),
        ("submit spmd_submit cluster dump_tag", _LATER, "use pl.at or pl.spmd"),
        ("while_ cond", _LATER, "use pl.range with an `if` in its body"),
        ("static_print static_assert", _LATER, "drop it"),
        ("DistributedTensor distributed", _DISTRIBUTED, "keep this kernel on pypto"),
        ("FP4 HF4 HF8 INT4 UINT4", "torch has no such element type", "use INT8 or FP8"),
        ("DN TileLayout TileView TilePad MemRef PipeType ForKind DynVar IntLike Tuple loads loads_program "
         "parse_program parser", _LATER, "leave it out"),
    ]
    for name in names.split()
}  # fmt: skip

UNSUPPORTED_SYSTEM: dict[str, tuple[str, str]] = {
    "syncall": ("a barrier between the blocks of one grid needs co-resident blocks", "end the region there"),
}

# decorators below pl.jit
UNSUPPORTED_JIT: dict[str, tuple[str, str]] = {
    "host": (_DISTRIBUTED, "call the @pl.jit entry from Python"),
    "incore": (_LATER, "write the body inside `with pl.at(...)`"),
    "opaque": (_LATER, "write the regions out"),
    "extern": ("the body is a vendor's C++ file", "write the kernel in the language"),
}

# Ours, for programs that compile kernels; a kernel has no use for them
OWN = frozenset({"Kernel", "Lowered", "Marker", "elaborate", "lower"})


# ------------------------------------------------------------------------------------------ foreign names
@dataclass(frozen=True)
class Foreign:
    """A use of a name or a keyword that pypto does not have."""

    span: Span
    name: str

    def __str__(self) -> str:
        return f"{self.span}: {self.name} is not part of pypto.language"


def foreign_names(path: Path) -> list[Foreign]:
    """Uses of ``pl.X``, and of keywords of ``pl.X(...)``, that are outside of pypto's vocabulary.

    ``pl`` is whatever name the file gives to the language.  Names that pypto has and this implementation does
    not are no finding here: the compiler refuses them.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    aliases = set(_aliases(tree))
    found: list[Foreign] = []
    inner = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            parts = _path(node, aliases)
            if parts is not None and _keywords(parts) is None:
                found.append(Foreign(_span(path, node), f"pl.{'.'.join(parts)}"))
        elif isinstance(node, ast.Call):
            parts = _path(node.func, aliases)
            known = _keywords(parts) if parts is not None else None
            for k in node.keywords if parts is not None and known is not None else ():
                if k.arg is not None and known is not None and known != ANYTHING and k.arg not in known:
                    found.append(Foreign(_span(path, k), f"{k.arg}= of pl.{'.'.join(parts or ())}"))
    return sorted(found, key=lambda f: (f.span.line, f.span.col))


ANYTHING = ("*",)  # pypto has the name; its keywords are not known here


def _aliases(tree: ast.AST) -> Iterator[str]:
    """Names of the language in a file: ``import ... as pl``, ``from pypto_models import language as pl``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.asname for a in node.names if a.asname and a.name.endswith(".language"))
        elif isinstance(node, ast.ImportFrom) and node.module in ("pypto_models", "pypto"):
            yield from (a.asname or a.name for a in node.names if a.name == "language")


def _path(node: ast.expr, aliases: set[str]) -> tuple[str, ...] | None:
    """``("tensor", "dim")`` of ``pl.tensor.dim``; None for anything that is not a member of the language."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return tuple(reversed(parts)) if parts and isinstance(node, ast.Name) and node.id in aliases else None


def _keywords(parts: tuple[str, ...]) -> tuple[str, ...] | None:
    """The keywords of a member of the language; None if pypto does not have it."""
    first, *rest = parts
    if first in UNSUPPORTED:
        return ANYTHING
    if first in MEMBERS and rest:
        others = {"system": UNSUPPORTED_SYSTEM, "jit": UNSUPPORTED_JIT}.get(first, {})
        return ANYTHING if rest[0] in others else MEMBERS[first].get(rest[0])
    if first == "jit":
        return ("auto_scope",)
    if first in ("tensor", "tile") and rest:
        return _keywords(tuple(rest))
    return SUPPORTED.get(first)


def _span(path: Path, node: ast.expr | ast.keyword) -> Span:
    return Span(str(path), node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0)
