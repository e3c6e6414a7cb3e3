"""The language reference: docs/language.md, rendered from the OpDefs and the tables of the front end.

What an op does, which element types it takes, where it may stand and how it splits is asked of its OpDef, so
that the page cannot say anything else.  The sections on types and constructs are text, kept here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from .errors import UserError
from .ir.expr import Const, Expr, Var, index
from .ir.nodes import Let, Unit
from .ir.types import (
    BOOL,
    DTYPES,
    FP8E8M0,
    FP32,
    UINT64,
    ArrayType,
    DType,
    TensorType,
    TileType,
    tile,
)
from .language.names import UNSUPPORTED, UNSUPPORTED_JIT, UNSUPPORTED_SYSTEM
from .ops import element, elementwise, matmul, memory, reduce, slicing, sync
from .ops.registry import Kind, OpDef, Sample, T
from .ops.rounding import MODES

FAMILIES: tuple[tuple[str, str, tuple[OpDef, ...]], ...] = (
    ("Elementwise and broadcasts", elementwise.__doc__ or "", elementwise.OPS),
    ("Reductions", reduce.__doc__ or "", reduce.OPS),
    ("Matrix products", matmul.__doc__ or "", matmul.OPS),
    ("Slices and assembly", slicing.__doc__ or "", slicing.OPS),
    ("Making and shaping", memory.__doc__ or "", memory.OPS),
    ("Single elements", element.__doc__ or "", element.OPS),
    ("Task ids", sync.__doc__ or "", sync.OPS),
)


def render_language_reference() -> str:
    """The Markdown text of docs/language.md."""
    families = "\n\n".join(_family(*f) for f in FAMILIES)
    return _PAGE.format(
        types=_types(), modes=", ".join(f"{m} {i}" for i, m in enumerate(MODES)), operations=families,
        unsupported=_unsupported(),
    )  # fmt: skip


# ------------------------------------------------------------------------------------------ operations
def _family(title: str, doc: str, ops: tuple[OpDef, ...]) -> str:
    spellings = dict.fromkeys(o.spelling for o in ops)
    entries = [[o for o in ops if o.spelling == spelling] for spelling in spellings]
    return "\n\n".join([f"### {title}", _markdown(doc), *map(_entry, entries)])


def _entry(overloads: list[OpDef]) -> str:
    """One heading for all ops of one spelling and signature; the words and facts of each."""
    parts: list[str] = []
    for signature in dict.fromkeys(map(_signature, overloads)):
        parts.append(f"#### `{signature}`")
        for o in overloads:
            if _signature(o) == signature:
                parts += [_markdown(o.doc), f"*{_facts(o)}.*"]
    return "\n\n".join(parts)


def _signature(o: OpDef) -> str:
    space = "" if "" in o.namespaces else f"{o.namespaces[0]}."
    return o.signature.replace("pl.", f"pl.{space}", 1)


def _facts(o: OpDef) -> str:
    """Where it stands, what it keeps busy, what it takes, how it splits."""
    inside = o.accepts is None or any(o.accepts(t, True) for t in (_first_type(o), None))
    where = "Inside of regions" if not o.outside else "Anywhere" if inside else "Outside of regions"
    unit = {Unit.VEC: "vector unit", Unit.CUBE: "cube unit, whole tiles", Unit.NONE: "no unit"}[o.unit]
    split = _split(o) if o.unit is Unit.VEC else ""
    other = ", ".join(f"`{n}=` is `{p.name}`" for p in o.params for n in p.synonyms)
    return "; ".join(part for part in (where, unit, _dtypes(o), split, other) if part)


def _split(o: OpDef) -> str:
    """What the op's rule says to its samples, under a split of the rows and of the columns."""
    lets = list(_examples(o))
    answers = [{o.split(axis, let) is None for let in lets} for axis in (0, 1)]
    yes = [name for name, found in zip(("rows", "columns"), answers, strict=True) if found == {True}]
    if any(len(found) == 2 for found in answers):
        return "splits where each half of the operands makes one half of the result"
    return f"splits by {' and '.join(yes)}" if yes else "does not split"


# ------------------------------------------------------------------------------------------ asking an OpDef
def _examples(o: OpDef) -> Iterator[Let]:
    """Calls of the op: its samples, or one made up from the kinds of its parameters."""
    for s in o.samples:
        yield _let(o, _arguments(o, s))
    if not o.samples:
        yield _let(o, tuple(_made_up(o, i) for i in range(len(o.params))))


def _let(o: OpDef, args: tuple[Any, ...]) -> Let:
    result = o.infer(*args)
    return Let(() if result is None else (Var("y", result),), o, args)


def _arguments(o: OpDef, sample: Sample) -> tuple[Any, ...]:
    given = dict(zip(o.param_names, sample.args, strict=False)) | dict(sample.keywords)
    return tuple(_argument(p.kind, given.get(p.name, p.default)) for p in o.params)


def _argument(kind: Kind, value: Any) -> Any:
    if isinstance(value, T):
        return Var("x", tile(value.shape, value.dtype, value.valid))
    if value is not None and kind is Kind.INDEX:
        return tuple(index(v) for v in value)
    if kind in (Kind.SCALAR, Kind.TILE_OR_SCALAR) and isinstance(value, int | float):
        return Const(value, FP32) if isinstance(value, float) else index(value)
    return value


def _made_up(o: OpDef, i: int) -> Any:
    p, rank = o.params[i], 2
    if not p.required:
        return _argument(p.kind, p.default)
    if p.kind in _OPERANDS:
        return Var(p.name, _OPERANDS[p.kind])
    if p.kind is Kind.INDEX:
        rank = 1 if o.params[0].kind is Kind.ARRAY else rank
        return tuple(index(16 if p.name == "shape" else 0) for _ in range(rank))
    if p.kind is Kind.STATIC:
        return (2,)
    return FP32 if p.kind is Kind.DTYPE else index(1)


_OPERANDS: Mapping[Kind, TensorType | TileType | ArrayType] = {
    Kind.TENSOR: TensorType((16, 16), FP32), Kind.TILE: tile((16, 16), FP32), Kind.ARRAY: ArrayType(2, FP32),
}  # fmt: skip


def _first_type(o: OpDef) -> TensorType | TileType | ArrayType | None:
    return _OPERANDS.get(o.params[0].kind) if o.params else None


def _dtypes(o: OpDef) -> str:
    """The element types that the op's type rule accepts, all operands of one type; empty if it has none."""
    concrete = [d for d in DTYPES if d.kind not in ("task", "index")]
    if not any(p.kind in (Kind.TILE, Kind.TENSOR) for p in o.params):
        return ""
    taken = [d for d in concrete if any(_accepts(o, let.args, d) for let in _examples(o))]
    numbers = [d for d in concrete if d not in (BOOL, UINT64, FP8E8M0)]
    floats = [d for d in numbers if d.is_float]
    for name, members in (("all types", concrete), ("numbers", numbers), ("floats", floats)):
        if taken == members:
            return name
    return ", ".join(["floats", *(str(d) for d in taken if d not in floats)])


def _accepts(o: OpDef, args: tuple[Any, ...], d: DType) -> bool:
    def retyped(a: Any) -> Any:
        if isinstance(a, Var) and isinstance(a.type, TileType | TensorType):
            return Var(a.name, replace(a.type, dtype=d))
        if isinstance(a, Const) and a.dtype.is_float and not d.is_float:
            return Const(int(a.value))
        return a

    want: list[Expr | Any] = [retyped(a) for a in args]
    if o.name == "matmul_acc":  # the accumulator has a type of its own
        want[0] = args[0] if d.is_float == args[0].type.dtype.is_float else want[0]
    if o.name == "matmul":
        want[2] = None
    try:
        o.infer(*want)
    except UserError:
        return False
    return True


# ------------------------------------------------------------------------------------------ tables
def _types() -> str:
    rows = ["| type | bytes | kind | torch |", "|---|---|---|---|"]
    for d in DTYPES:
        torch_name = f"`torch.{d.torch_name}`" if d.torch_name else "–"
        rows.append(f"| `pl.{d}` | {d.bytes} | {d.kind} | {torch_name} |")
    return "\n".join(rows)


def _unsupported() -> str:
    tables = (("pl", UNSUPPORTED), ("pl.system", UNSUPPORTED_SYSTEM), ("pl.jit", UNSUPPORTED_JIT))
    groups: dict[tuple[str, str], list[str]] = {}
    for prefix, table in tables:
        for name, reason in table.items():
            groups.setdefault(reason, []).append(f"`{prefix}.{name}`")
    rows = ["| names | why | instead |", "|---|---|---|"]
    rows += [f"| {', '.join(names)} | {why} | {fix} |" for (why, fix), names in groups.items()]
    return "\n".join(rows)


def _markdown(doc: str) -> str:
    """A docstring as Markdown: one line per paragraph, single backquotes, names of ops as code."""
    paragraphs: Iterable[str] = (" ".join(p.split()) for p in doc.strip().split("\n\n"))
    return "\n\n".join(paragraphs).replace("``", "`")


# ------------------------------------------------------------------------------------------ the page
_PAGE = """\
# Language reference

*This page is made by `make docs` from the definitions of the operations; edit those, not the page.*

`import pypto_models.language as pl` is source-compatible with `pypto.language`: a pypto kernel that keeps
to what is listed here runs with only its import changed. Kernel bodies are parsed, never executed.

```python
import pypto_models.language as pl

ROWS = 16


@pl.jit
def scale(
    x: pl.Tensor[[64, 128], pl.FP32],
    weight: pl.Tensor[[1, 128], pl.FP32],
    out: pl.Out[pl.Tensor[[64, 128], pl.FP32]],
):
    for i in pl.spmd(64 // ROWS, name_hint="scale"):
        rows = pl.slice(x, [ROWS, 128], [i * ROWS, 0])
        out = pl.assemble(out, pl.col_expand_mul(rows, weight), [i * ROWS, 0])
    return out
```

## Kernels

`@pl.jit` makes an entry: every parameter is annotated, and calling it compiles it for its arguments and
runs it. `@pl.jit.inline` makes a function that is spliced into its caller: its tensor parameters are the
caller's tensors, written in place, and bare `pl.Tensor` takes any shape.

Kernels use assignments, `for` over the loops below, `if`, `with`, `return`, arithmetic, comparisons, `and`,
`or`, `not` and subscripts. `//` and `%` are floor division and its remainder, `and` and `or` evaluate both
sides, integer literals are `pl.INDEX`. Constants of the module are folded, and `if` on a constant takes one
side at compile time. A name that is rebound in a loop or a branch is carried or merged: it keeps one shape
and element type.

## Types

* `pl.Tensor[[dims], dtype]`: a tensor in global memory, read only. Bare `pl.Tensor` takes the caller's
  shape.
* `pl.Out[pl.Tensor[...]]`: the kernel writes it and never reads what was there; something must write it.
* `pl.InOut[pl.Tensor[...]]`: read and written.
* `pl.Scalar[dtype]`: a number of the call.
* `pl.Tile[[dims], dtype]`: a tile on chip, where a name inside of a region is annotated.
* `pl.Array[n, pl.TASK_ID]`: a small array of task ids, or of scalars.
* `pl.dynamic("N")`, `pl.RUNTIME`: an extent of a tensor that only the run knows. `pl.tensor.dim(t, axis)`
  reads it.

A tensor that is written without being `Out` or `InOut` is written in a private copy: the caller does not
see it.

A **tile** lives on chip, inside of one region. It has a constant shape, an element type and a *valid
rectangle* `[0:rows, 0:columns]`, which may depend on run-time extents. Elements outside of it are
undefined, and reading one is an error of the simulator; `pl.fillpad` defines them. A tensor that stands
where an operation wants a tile is loaded whole.

{types}

*Numbers*, below, are all of these but `BOOL`, `UINT64`, `FP8E8M0`, `INDEX` and `TASK_ID`; the first three
can be moved, cast and stored. Operands of two types compute in the wider one: a float beats an integer,
then more bits win, then the signed integer. Two floats of one width (`BF16` and `FP16`) have no common
type: cast one. A scalar takes the tile's type. Floats narrower than fp32 compute in fp32 and round once,
ties to even; integers wrap at their width.

Rounding modes of `pl.cast`, by name or number: {modes}. `none` and `rint` go to the nearest, ties to even;
`round`, the default, takes ties away from zero; `odd` gives inexact results an odd last bit. Out of range,
integers saturate and NaN becomes 0; floats follow IEEE 754; `FP8E4M3FN` and `FP8E8M0`, which have no
infinity, saturate.

## Loops and regions

Outside of regions, these launch work:

* `with pl.at(level=pl.Level.CORE_GROUP, optimizations=, deps=, name_hint=) [as tid]:` is a region, one task
  on one core group.
* `for i in pl.spmd(n, optimizations=, name_hint=):` is a region of `n` independent blocks; so is `with
  pl.spmd(n, deps=) [as tid]:`, where the block is `pl.get_block_idx()`.
* `for i in pl.parallel(...):` has independent iterations, each of which launches its regions.
* `with pl.scope():` bounds the life of the tensors made in it. `with pl.manual_scope():` also leaves the
  order of tasks to `deps=`.

Inside of regions, `for i in pl.pipeline(..., stage=n):` is a sequential loop whose loads run ahead in `n`
buffers. Anywhere, `for i in pl.range(stop):` or `(start, stop, step)` is a sequential loop, and `for i in
pl.unroll(...):` repeats its body with `i` a constant.

Operations that compute stand inside of regions. Regions do not nest. A value of one region may be read in a
later one: it goes through global memory. Tasks are ordered by the data that they read and write, and by
`deps=`.

`optimizations=[pl.split(pl.SplitMode.UP_DOWN)]` divides the vector part of a region that uses both units
over two lanes, by rows; `LEFT_RIGHT` by columns. Results do not change. An operation that cannot run on
halves is an error; the list below says which ones can. A tile with one element on the axis is held whole by
both lanes.

`pl.spmd(n, sync_start=True)` starts all blocks at once. More blocks than the target runs at once (one on each
core or, without a product, one on each vector lane) are an error: when compiling if `n` is a constant, at the
launch if not.

`role`, `no_dep_args`, `dumps`, `allow_early_resolve`, `windowize`, `chunk`, `chunk_policy`,
`pl.cross_core_slot` and `pl.auto_chunk` are hints: they are accepted, and results do not change.

Scalars: `pl.min(a, b)`, `pl.max(a, b)`, `pl.const(value, dtype)`, `pl.cast(scalar, dtype)`,
`pl.tensor.dim(t, axis)`, `pl.get_block_idx()`.

Subscripts: `t[a:b, :]` is `pl.slice`, `t[i, j]` is `pl.read`, `t[a:b, i] = tile` is `pl.assemble`, and
`t[i, j] = scalar` is `pl.write`. A scalar index drops its axis.

## Operations

Each is a member of `pl`, and of `pl.tensor` and `pl.tile` too unless its name says otherwise. Under it
stands where it is legal, the unit that it keeps busy (loads, stores and views keep none), the element types
of its operands, and whether it runs on halves under `UP_DOWN` (rows) and `LEFT_RIGHT` (columns). An
operation that changes a tile in place changes it for every name bound to it.

{operations}

## Names of pypto that are not supported

Using one is an error that gives the reason and what to do instead.

{unsupported}
"""
