"""The text of a CuTe DSL kernel: the names that it must not take, and its barrier."""

from __future__ import annotations

import re

from ..gpu import text

_RESERVED = frozenset({
    "cutlass", "cute", "across", "arrival", "block", "fragments", "stream", "utils", "tid", "lane",
    "warp", "smem", "shared", "env", "min", "max", "range", "BFloat16", "Float16", "Float32", "Int8",
    "Int16", "Int32", "Int64", "Uint8", "Uint16", "Uint32", "Boolean",
})  # fmt: skip


# What CuTe DSL calls its own variables when it rewrites loops and branches, with a number behind.  It does
# not look whether the name is taken: a kernel's variable of that name would change its value.
_GENERATED = re.compile(
    r"(start|stop|step|offset|isNegative|(start|stop|step)_ori|loop_carried_var|loop_body|(if|elif|while)_region"
    r"|(ifexp_)?(then|else)_block|while_(before|after)_block|_pyir_\w+)(_\d+)?"
)

BARRIER = "cute.arch.sync_threads()"


class Text(text.Text):
    reserved = _RESERVED
    generated = _GENERATED
    barrier = BARRIER
