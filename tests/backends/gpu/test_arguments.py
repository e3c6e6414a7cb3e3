"""Arguments of a launch: what does not fit is refused before anything runs; and the launches themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from backends.gpu.arguments import ALIGN, LIMIT, bind, calls, workspace
from backends.gpu.manifest import Launch, Manifest, Parameter, Workspace

CPU = torch.device("cpu")
MANIFEST = Manifest(
    "scale", "cute", "h200", "sm_90a",
    parameters=(
        Parameter("x", "tensor", "in", "float32", ("ROWS", "16")),
        Parameter("ends", "tensor", "in", "int32", ("ROWS + 1",)),
        Parameter("s", "scalar", "in", "int8"),
        Parameter("factor", "scalar", "in", "float32"),
        Parameter("flag", "scalar", "in", "bool"),
        Parameter("y", "tensor", "out", "float32", ("ROWS", "16")),
    ),
    workspaces=(Workspace("a", "float32", ("ROWS", "3")), Workspace("b", "bfloat16", ("200",))),
    kernels=(),
    launches=(
        Launch("first", "(ROWS + 7) // 8", (("pointer", "x"), ("extent", "ROWS"), ("scalar", "s"))),
        Launch("tail", "ROWS - 8", (("pointer", "a"),)),
        Launch("last", "2", (("pointer", "b"), ("scalar", "factor"), ("scalar", "ROWS * 2"))),
    ),
    source_sha256="",
)  # fmt: skip


def arguments(**changes: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "x": torch.ones(8, 16), "ends": torch.zeros(9, dtype=torch.int32), "y": torch.zeros(8, 16),
        "s": 3, "factor": 0.5, "flag": True,
    }  # fmt: skip
    return {**good, **changes}


def test_arguments_that_fit() -> None:
    bound = bind(MANIFEST, arguments(), CPU)
    assert bound.extents == {"ROWS": 8}
    assert bound.scalars == {"s": 3, "factor": 0.5, "flag": 1}
    assert bind(MANIFEST, arguments(s=np.int8(-4), factor=2), CPU).scalars["s"] == -4


SHARED = torch.zeros(12, 16)
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"x": [1.0]}, "x is list; give a tensor"),
    "device": ({"x": torch.ones(8, 16, device="meta")}, "x is on meta; move it to cpu"),
    "dtype": ({"x": torch.ones(8, 16).half()}, "x has dtype torch.float16; it must be torch.float32"),
    "rank": ({"x": torch.ones(8)}, r"x has shape \[8\]; it must have 2 axes"),
    "extent": ({"x": torch.ones(8, 17)}, "x: axis 1 has 17 elements instead of 16"),
    "run-time extent": ({"y": torch.zeros(9, 16)}, "ROWS is 8 in x and 9 in y"),
    "computed extent": (
        {"ends": torch.zeros(8, dtype=torch.int32)}, r"ends: axis 0 has 8 elements instead of ROWS \+ 1 = 9",
    ),
    "no rows": (
        {"x": torch.ones(0, 16), "y": torch.zeros(0, 16)}, "x: axis 0 has 0 elements; 1 to 2147483647",
    ),
    "layout": ({"x": torch.ones(16, 8).t()}, "x is not contiguous"),
    "alignment": ({"x": torch.ones(129)[1:].view(8, 16)}, "x starts at an address that is no multiple of 16"),
    "integer": ({"s": 1.5}, "s is float; give an integer"),
    "range": ({"s": 128}, "s is 128; -128 to 127 are possible"),
    "number": ({"factor": "1"}, "factor is str; give a number"),
    "flag": ({"flag": 2}, "flag is 2; give True or False"),
    "a number on the device": ({"factor": torch.tensor(1.0)}, "factor is a tensor; give a number"),
    "two that are written": ({"x": SHARED[:8], "y": SHARED[4:]}, "y and x share memory"),
    "the same": ({"x": SHARED[:8], "y": SHARED[:8]}, "y and x share memory|x and y share memory"),
    "unknown": ({"z": 1}, "scale has no argument z"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_refused(case: str) -> None:
    changes, why = CASES[case]
    with pytest.raises(ValueError, match=why):
        bind(MANIFEST, arguments(**changes), CPU)


def test_a_missing_argument_is_named() -> None:
    args = arguments()
    del args["ends"]
    with pytest.raises(ValueError, match="scale: the argument ends is missing"):
        bind(MANIFEST, args, CPU)


def test_inputs_may_share_memory() -> None:
    two = Manifest(
        **{
            **vars(MANIFEST),
            "parameters": (MANIFEST.parameters[0], Parameter("w", "tensor", "in", "float32", ("4", "16"))),
        }
    )
    assert bind(two, {"x": SHARED[:8], "w": SHARED[2:6]}, CPU).extents == {"ROWS": 8}


def test_workspace_is_one_allocation_of_aligned_parts() -> None:
    slab = workspace(MANIFEST, {"ROWS": 22})  # a: 264 bytes, b: 400 bytes
    assert slab.offsets == {"a": 0, "b": 2 * ALIGN} and slab.bytes == 4 * ALIGN


def test_the_launches() -> None:
    pointers = {"x": 1000, "a": 2000, "b": 3000}
    found = [
        (x.kernel, grid, values)
        for x, grid, values in calls(MANIFEST, bind(MANIFEST, arguments(), CPU), pointers)
    ]
    # tail has no block for 8 rows, so it is not launched
    assert found == [("first", 1, [1000, 8, 3]), ("last", 2, [3000, 0.5, 16])]


def test_too_many_blocks_are_refused() -> None:
    wide = Manifest(**{**vars(MANIFEST), "launches": (Launch("k", f"ROWS * {LIMIT // 8}", ()),)})
    with pytest.raises(ValueError, match="k has 2147483648 blocks; 2147483647 are possible"):
        list(calls(wide, bind(MANIFEST, arguments(), CPU), {}))
