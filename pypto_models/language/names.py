"""Names of ``pypto.language`` that this implementation knows of but does not have, with the reason.

Together with the supported names this is the table against which our models are held: they may use nothing
outside of pypto.
"""

from __future__ import annotations

_LATER = "it is not implemented yet"
_DISTRIBUTED = "distributed programs are not covered"
_OLD_STYLE = "the class style (@pl.program) is older than @pl.jit"
_LANES = "two-lane code written by hand changes the meaning of a region"

# name -> (why, fix)
UNSUPPORTED: dict[str, tuple[str, str]] = {
    **dict.fromkeys(
        ("sort32", "mrgsort", "gather", "arange", "ci", "concat", "gather_row", "scatter", "scatter_update"),
        (_LATER, "write it with the supported ops, or keep this kernel on pypto"),
    ),
    **dict.fromkeys(
        ("col_expand", "row_expand", "col_expand_expdif", "row_argmax", "row_argmin", "col_prod", "row_prod"),
        (_LATER, "write it with the supported ops"),
    ),
    **dict.fromkeys(
        ("load", "store", "create_tile", "create_l1", "prefetch", "paged_gather", "mscatter", "mgather"),
        (_LATER, "use pl.slice and pl.assemble, which load and store inside of a region"),
    ),
    **dict.fromkeys(
        ("batch_matmul", "matmul_bias", "matmul_mx", "gemv", "gemv_acc"),
        (_LATER, "use pl.matmul on slices"),
    ),
    **dict.fromkeys(
        (
            "view",
            "reinterpret_view",
            "transpose_view",
            "expand_clone",
            "sel",
            "sels",
            "relu",
            "lrelu",
            "prelu",
        ),
        (_LATER, "write it with the supported ops"),
    ),
    **dict.fromkeys(
        ("sin", "cos", "fmod", "tri", "random", "shl", "shr", "bit_and", "bit_or", "bit_xor", "part_add"),
        (_LATER, "write it with the supported ops"),
    ),
    **dict.fromkeys(
        ("split_aiv", "aiv_shard", "aic_gather"),
        (_LANES, "use optimizations=[pl.split(pl.SplitMode.UP_DOWN)]"),
    ),
    **dict.fromkeys(
        ("program", "function", "func_attr", "FunctionType"),
        (_OLD_STYLE, "write the kernel as a @pl.jit function"),
    ),
    **dict.fromkeys(("submit", "spmd_submit", "cluster", "dump_tag"), (_LATER, "use pl.at or pl.spmd")),
    **dict.fromkeys(("while_", "cond"), (_LATER, "use pl.range with an `if` in its body")),
    **dict.fromkeys(("static_print", "static_assert"), (_LATER, "drop it")),
    **dict.fromkeys(("DistributedTensor", "distributed"), (_DISTRIBUTED, "keep this kernel on pypto")),
    **dict.fromkeys(
        ("FP4", "HF4", "HF8", "INT4", "UINT4"), ("torch has no such element type", "use INT8 or FP8")
    ),
}

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
