"""The compile driver: platforms, programs, constants, dumps, warnings."""

from __future__ import annotations

import builtins
from pathlib import Path

import pytest
import torch

import pypto_models.language as pl
from pypto_models import UserError, compile

ROWS = 32
FACTOR = 2.0


@pl.jit
def scale(x: pl.Tensor[[ROWS, 64], pl.FP32], y: pl.Out[pl.Tensor[[ROWS, 64], pl.FP32]]):
    for b in pl.spmd(ROWS // 16, name_hint="scale"):
        y[b * 16 : b * 16 + 16, :] = pl.mul(x[b * 16 : b * 16 + 16, :], FACTOR)


@pl.jit
def shapeless(x: pl.Tensor, y: pl.Out[pl.Tensor]):
    with pl.at(level=pl.Level.CORE_GROUP):
        y[:, :] = pl.add(x, 1.0)


@pl.jit
def writes_an_input(x: pl.Tensor[[16, 64], pl.FP32], y: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        x[:, :] = pl.add(x, 1.0)
    with pl.at(level=pl.Level.CORE_GROUP):
        y[:, :] = pl.add(x, 0.0)


@pl.jit
def war(x: pl.InOut[pl.Tensor[[16, 64], pl.FP32]], y: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="reader"):
        y[:, :] = pl.add(x, 1.0)
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="writer"):
        x[:, :] = pl.full([16, 64], pl.FP32, 0.0)


def test_a_program_runs_and_knows_its_parameters() -> None:
    program = compile(scale)
    x, y = torch.randn(32, 64), torch.empty(32, 64)
    program(x, y)
    assert torch.equal(y, x * 2)
    assert [(p.name, p.kind, p.direction) for p in program.params] == [
        ("x", "tensor", "in"),
        ("y", "tensor", "out"),
    ]
    assert program.written == {"y"}
    assert program.warnings == ()


def test_calling_a_kernel_compiles_and_runs_it() -> None:
    x, y = torch.randn(32, 64), torch.empty(32, 64)
    scale(x, y, config={"platform": "h200sim", "constants": {"FACTOR": 3.0}})
    assert torch.equal(y, x * 3)


def test_constants_replace_module_constants_by_name() -> None:
    x, y = torch.randn(48, 64), torch.empty(48, 64)
    compile(scale, constants={"ROWS": 48, "FACTOR": -1.0})(x, y)
    assert torch.equal(y, -x)
    with pytest.raises(UserError, match=r"no kernel reads the constant 'ROW'[\s\S]*known constants: "):
        compile(scale, constants={"ROW": 48})


def test_shapes_come_from_example_arguments() -> None:
    x, y = torch.randn(16, 128), torch.empty(16, 128)
    compile(shapeless, x, y)(x, y)
    assert torch.equal(y, x + 1)
    with pytest.raises(UserError, match="'x': its shape or dtype is not known"):
        compile(shapeless)


def test_wrong_number_of_arguments() -> None:
    with pytest.raises(UserError, match=r"1 arguments for 2 parameters[\s\S]*scale\(x, y\)"):
        compile(scale)(torch.randn(32, 64))


def test_an_input_that_is_written_is_a_warning_and_the_caller_sees_nothing() -> None:
    program = compile(writes_an_input)
    (warning,) = [w for w in program.warnings if "not declared pl.Out or pl.InOut" in w]
    assert "'x'" in warning
    x, y = torch.zeros(16, 64), torch.empty(16, 64)
    program(x, y)
    assert torch.equal(x, torch.zeros(16, 64)) and torch.equal(y, torch.ones(16, 64))


def test_a_hazard_is_reported_where_the_run_time_does_not_order_it() -> None:
    (hazard,) = [w for w in compile(war, platform="a2a3sim").warnings if w.startswith("hazard")]
    assert "WAR" in hazard and "reader" in hazard and "writer" in hazard and "x" in hazard
    assert not [w for w in compile(war, platform="h200sim").warnings if w.startswith("hazard")]


def test_gpu_platforms_say_that_memory_is_not_checked() -> None:
    for platform in ("gb10sim", "h200sim"):
        assert any("not" in w and "memory" in w for w in compile(scale, platform=platform).warnings)


def test_dump_writes_every_stage_as_source(tmp_path: Path) -> None:
    compile(scale, dump_passes=tmp_path, check=True)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names[:2] == ["00_after_front_end.py", "01_after_spill.py"]
    assert {"task_graph.txt", "region_domains.txt", "memory_plan.txt"} <= set(names)
    x, y = torch.randn(32, 64), torch.empty(32, 64)
    for path in sorted(tmp_path.glob("*.py")):
        namespace: dict[str, object] = {}
        exec(builtins.compile(path.read_text(), str(path), "exec"), namespace)
        kernel = namespace["scale"]
        assert isinstance(kernel, pl.Kernel)
        compile(kernel)(x, y)
        assert torch.equal(y, x * 2)
