"""Types: dtypes, parameters and their directions, annotations as objects and as strings."""

from __future__ import annotations

import pytest
import torch

import pypto_models.language as pl
from pypto_models.ir.expr import DimVar, Var
from pypto_models.ir.nodes import Direction
from pypto_models.ir.types import ScalarType, TensorType, TileType
from pypto_models.language import annotations as ann

from .support import error_of, lets, lowered, marked, randn, run

DTYPES = {
    "BOOL": torch.bool, "INT8": torch.int8, "INT16": torch.int16, "INT32": torch.int32, "INT64": torch.int64,
    "UINT8": torch.uint8, "UINT16": torch.uint16, "UINT32": torch.uint32, "UINT64": torch.uint64,
    "FP16": torch.float16, "BF16": torch.bfloat16, "FP32": torch.float32, "FP8E4M3FN": torch.float8_e4m3fn,
    "FP8E5M2": torch.float8_e5m2, "FP8E8M0": torch.float8_e8m0fnu,
}  # fmt: skip


@pl.jit
def copy(x: pl.Tensor, out: pl.Out[pl.Tensor]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = pl.slice(x, [8, 16], [0, 0])


@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_with_a_torch_counterpart(name: str) -> None:
    """Bits 1, 2, 3, ... arrive unchanged, and the parameter has the type of the tensor."""
    dtype = DTYPES[name]
    bits = torch.arange(8 * 16 * dtype.itemsize, dtype=torch.uint8).reshape(8, -1) % 2
    x, out = bits.view(dtype).reshape(8, 16), torch.zeros(8, 16, dtype=dtype)
    fn = lowered(copy, x, out)
    assert fn.params[0].var.type == TensorType((8, 16), getattr(pl, name))
    run(copy, x=x, out=out)
    assert torch.equal(out.view(torch.uint8), x.view(torch.uint8))


T = pl.dynamic("T")
WIDTH = 64


@pl.jit
def entry(
    a: pl.Tensor[[T, WIDTH], pl.BF16],
    b: pl.InOut[pl.Tensor[[T, 2 * WIDTH], pl.FP32]],
    c: "pl.Out[pl.Tensor[[pl.RUNTIME, WIDTH], pl.FP32]]",  # noqa: UP037
    d: pl.Scalar[pl.FP32],
    e: pl.Scalar[pl.INDEX],
):
    with pl.at(level=pl.Level.CORE_GROUP):
        t = pl.mul(pl.cast(a[0:16, :], pl.FP32), d)
        b[0:16, e : e + 64] = t
        c[0:16, :] = t


def test_directions_and_extents() -> None:
    fn = lowered(entry)
    a, b, c, d, e = fn.params
    assert [p.direction for p in fn.params] == [
        Direction.IN, Direction.INOUT, Direction.OUT, Direction.IN, Direction.IN
    ]  # fmt: skip
    assert a.var.type == TensorType((DimVar("T"), 64), pl.BF16)
    assert b.var.type == TensorType((DimVar("T"), 128), pl.FP32)
    assert c.var.type == TensorType((DimVar("c_dim0"), 64), pl.FP32)
    assert (d.var.type, e.var.type) == (ScalarType(pl.FP32), ScalarType(pl.INDEX))


def test_annotations_are_strings_in_this_module() -> None:
    assert entry.fn.__annotations__["a"] == "pl.Tensor[[T, WIDTH], pl.BF16]"


def test_annotations_are_data_to_python() -> None:
    assert pl.Tensor[[T, 4], pl.BF16] == ann.TensorAnnotation((T, 4), pl.BF16)
    assert pl.Out[pl.Tensor] == ann.Directed(ann.TensorAnnotation(), Direction.OUT)
    assert pl.Tile[[4, 8], pl.FP32, pl.Mem.Acc] == ann.TileAnnotation((4, 8), pl.FP32, pl.Mem.Acc)
    assert pl.TaskId == pl.Scalar[pl.TASK_ID]
    assert pl.Array[4, pl.TASK_ID] == ann.ArrayAnnotation(4, pl.TASK_ID)


@pl.jit
def placed(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        t: pl.Tile[[16, 64], pl.FP32, pl.Mem.Vec, pl.SplitMode.UP_DOWN] = pl.add(x, 1.0)
        rows: pl.Scalar[pl.INT32] = 4
        u: pl.Tensor[[16, 64], pl.FP32] = pl.set_validshape(t, rows, 64)
        out[:, :] = pl.fillpad(u)


def test_an_annotated_assignment_sets_the_space_and_the_split() -> None:
    fn = lowered(placed)
    (add,) = lets(fn, "add")
    assert add.result.type == TileType((16, 64), pl.FP32, (16, 64), pl.Mem.Vec, pl.SplitMode.UP_DOWN)
    (valid,) = lets(fn, "set_validshape")
    assert valid.arg("x") is add.result
    assert (valid.arg("rows").dtype, valid.arg("rows").value) == (pl.INT32, 4)  # type: ignore[union-attr]


@pl.jit
def wrong_annotation(x: pl.Tensor[[16, 64], pl.FP32], out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        t: pl.Tile[[16, 32], pl.FP32] = pl.add(x, 1.0)
        out[:, :] = t


def test_an_annotated_assignment_is_checked() -> None:
    error = error_of(wrong_annotation)
    assert (error.code, marked(error)) == ("annotation", "pl.add(x, 1.0)")
    assert error.message == "'t': its shape is [16, 64], annotated as [16, 32]"


@pl.jit
def shapes(x: pl.Tensor, out: pl.Out[pl.Tensor]):
    rows, cols = x.shape
    if x.dtype == pl.BF16:
        scale = 2.0
    else:
        scale = 3.0
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = pl.cast(pl.mul(pl.slice(x, [rows, cols], [0, 0]), scale), out.dtype)


@pytest.mark.parametrize(("dtype", "scale"), [(torch.bfloat16, 2.0), (torch.float32, 3.0)])
def test_shape_and_dtype_of_a_tensor_are_constants(dtype: torch.dtype, scale: float) -> None:
    x, out = randn(8, 32, dtype=dtype), torch.empty(8, 32)
    run(shapes, x=x, out=out)
    assert torch.equal(out, (x.float() * scale).to(dtype).float())


def test_open_shapes_need_arguments() -> None:
    error = error_of(shapes)
    assert (error.code, marked(error)) == ("annotation", "x: pl.Tensor")
    assert "compile with example arguments" in error.fix


def test_arguments_must_fit_the_annotations() -> None:
    good = [torch.zeros(4, 64, dtype=torch.bfloat16), torch.zeros(4, 128), torch.zeros(4, 64), 1.0, 0]
    assert len(lowered(entry, *good).params) == 5
    for at, bad, why in [
        (0, torch.zeros(4, 64), "the argument is FP32, the annotation says BF16"),
        (
            0,
            torch.zeros(4, 32, dtype=torch.bfloat16),
            r"the argument is [4, 32], the annotation says [T, 64]",
        ),
        (1, 1.0, "the argument is 1.0, not a tensor"),
        (3, torch.zeros(4), "the argument is a tensor [4]"),
        (
            1,
            torch.zeros(4, 128, dtype=torch.float64),
            "the argument is torch.float64, the annotation says FP32",
        ),
    ]:
        error = error_of(entry, *[bad if i == at else g for i, g in enumerate(good)])
        assert error.code == "annotation" and why in error.message
        assert marked(error).startswith("abcd"[at] + ":")


def test_the_number_of_arguments_must_fit() -> None:
    error = error_of(copy, torch.zeros(8, 16))
    assert error.code == "bad-call" and error.message == "copy: 1 arguments for 2 parameters"


@pl.jit
def unannotated(x, out: pl.Out[pl.Tensor[[8, 16], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        out[:, :] = x


def test_an_entry_needs_annotations() -> None:
    error = error_of(unannotated)
    assert (error.code, marked(error)) == ("annotation", "x")
    assert "pl.Tensor[[M, N], pl.FP32]" in error.fix


def test_a_kernel_is_never_executed_by_python() -> None:
    with pytest.raises(RuntimeError, match="pl.add is part of the kernel language"):
        pl.add(1, 2)
    with pytest.raises(RuntimeError, match="pl.at is part of the kernel language"):
        pl.at(level=pl.Level.CORE_GROUP)


def test_only_functions_are_kernels() -> None:
    with pytest.raises(TypeError, match="@pl.jit decorates functions, got int"):
        pl.jit(3)


def test_parameters_are_variables_of_their_own() -> None:
    fn = lowered(entry)
    assert all(isinstance(p.var, Var) for p in fn.params)
    assert len({p.var for p in fn.params}) == 5
