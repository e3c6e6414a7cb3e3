"""The kernel language: ``import pypto_models.language as pl``, source-compatible with ``pypto.language``.

Kernel bodies are parsed, never executed.  Everything here is a type, a constant or a marker.
"""

from __future__ import annotations

from typing import Any

from ..ir.types import (
    BF16,
    BOOL,
    FP8E4M3FN,
    FP8E5M2,
    FP8E8M0,
    FP16,
    FP32,
    INDEX,
    INT8,
    INT16,
    INT32,
    INT64,
    TASK_ID,
    UINT8,
    UINT16,
    UINT32,
    UINT64,
    Mem,
    SplitMode,
)
from ..ops import REGISTRY
from .annotations import RUNTIME, Array, InOut, Out, Scalar, Tensor, Tile, dynamic
from .constructs import (
    INTRINSICS,
    LOOPS,
    REGIONS,
    SCOPES,
    AtomicType,
    AutoChunk,
    Construct,
    Intrinsic,
    Level,
    Marker,
    Namespace,
    OpMarker,
    PadValue,
    Role,
    TensorLayout,
    Unsupported,
    cross_core_slot,
    split,
)
from .entry import Lowered, elaborate, lower, parse
from .kernel import Kernel, jit
from .names import UNSUPPORTED, UNSUPPORTED_SYSTEM

MemorySpace = Mem
TaskId: Any = Scalar.__class_getitem__(TASK_ID)
auto_chunk = AutoChunk()
ND, NZ = TensorLayout.ND, TensorLayout.NZ


def _members(namespace: str) -> dict[str, Any]:
    return {o.spelling: OpMarker(o.spelling, namespace) for o in REGISTRY if namespace in o.namespaces}


def _unsupported(namespace: str) -> dict[str, Any]:
    return {n: Unsupported(n, namespace, why, fix) for n, (why, fix) in UNSUPPORTED.items()}


_TOP: dict[str, Any] = {
    **_unsupported(""),
    **_members(""),
    **{n: Construct(n) for n in (*LOOPS, *REGIONS, *SCOPES)},
    **{n: Intrinsic(n) for n in INTRINSICS},
    "tensor": Namespace(
        "tensor", {**_unsupported("tensor"), **_members("tensor"), "dim": Intrinsic("dim", "tensor")}
    ),
    "tile": Namespace(
        "tile",
        {**_unsupported("tile"), **_members("tile"), "get_block_idx": Intrinsic("get_block_idx", "tile")},
    ),
    "array": Namespace("array", _members("array")),
    "system": Namespace(
        "system",
        {
            **_members("system"),
            **{n: Unsupported(n, "system", why, fix) for n, (why, fix) in UNSUPPORTED_SYSTEM.items()},
        },
    ),
}


def __getattr__(name: str) -> Any:
    if name in _TOP:
        return _TOP[name]
    raise AttributeError(f"pypto_models.language has no member {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_TOP])


__all__ = [
    "BF16", "BOOL", "FP16", "FP32", "FP8E4M3FN", "FP8E5M2", "FP8E8M0", "INDEX", "INT16", "INT32", "INT64",
    "INT8", "ND", "NZ", "RUNTIME", "TASK_ID", "UINT16", "UINT32", "UINT64", "UINT8", "Array", "AtomicType",
    "InOut", "Kernel", "Level", "Lowered", "Marker", "Mem", "MemorySpace", "Out", "PadValue", "Role",
    "Scalar", "SplitMode", "TaskId", "Tensor", "TensorLayout", "Tile", "auto_chunk", "cross_core_slot",
    "dynamic", "elaborate", "jit", "lower", "parse", "split",
]  # fmt: skip
