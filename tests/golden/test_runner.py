"""run_jit and run: the options, the printed log, and the exit-code convention."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from golden import ScalarSpec, TensorSpec, run, run_jit
from tests.golden.fakes import FakeProgram, double, golden_double, specs

DOUBLE = FakeProgram(double, x="in", y="out")


class Compiler:
    """Stands in for the compiler: remembers its call and returns DOUBLE."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def compile(self, fn: Any, *args: Any, platform: str = "a2a3sim", dump_passes: Any = None) -> FakeProgram:
        self.calls.append((fn, args, platform, dump_passes))
        return DOUBLE


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    module, compiler = ModuleType("pypto_models.compile"), Compiler()
    module.compile = compiler.compile  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pypto_models.compile", module)
    return compiler


def kernel() -> None:
    """The fake compiler looks at its name only."""


def test_run_jit_compiles_for_the_specs_and_compares(compiler: Compiler) -> None:
    result = run_jit(
        kernel,
        specs=specs(),
        golden_fn=golden_double,
        compile_cfg={"dump_passes": "passes"},
        runtime_cfg={"platform": "a5sim"},
        rtol=1e-3,
        atol=1e-3,
    )
    assert result.passed and "compile" in result.stage_times
    ((fn, args, platform, dump_passes),) = compiler.calls
    assert (fn, platform, dump_passes) == (kernel, "a5sim", "passes")
    assert [(tuple(a.shape), a.dtype) for a in args] == [((8, 16), torch.float32)] * 2


def test_the_platform_defaults_to_the_simulator(compiler: Compiler) -> None:
    assert run_jit(kernel, specs(), golden_double).passed
    assert compiler.calls[0][2] == "a2a3sim"


def test_scalars_reach_the_compiler_as_numbers(compiler: Compiler) -> None:
    run_jit(kernel, [ScalarSpec("n", torch.int32, 3)], compile_only=True)
    assert compiler.calls[0][1] == (3,)


def test_compile_only_generates_nothing_and_exits_with_0(
    compiler: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    def never() -> None:
        raise AssertionError("inputs are not needed to compile")

    spec = [TensorSpec("x", (8, 16), torch.float32, init_value=never), specs()[1]]
    result = run_jit(kernel, spec, golden_double, compile_only=True)
    assert (result.status, result.passed, result.error) == ("SKIPPED", True, None)
    out = capsys.readouterr().out
    assert out.splitlines()[-1].endswith("s, compile only)") and "PASS" not in out


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"runtime_cfg": {"platfrom": "a5sim"}},
            "runtime_cfg has no key 'platfrom'; known keys: device_id, .*platform",
        ),
        ({"compile_cfg": {"dump": True}}, "compile_cfg has no key 'dump'; known keys: dump_passes$"),
        (
            {"compile_cfg": {"platform": "a5sim"}},
            "compile_cfg has no key 'platform': it belongs to runtime_cfg",
        ),
    ],
)
def test_unknown_keys(compiler: Compiler, options: dict[str, Any], match: str) -> None:
    with pytest.raises(TypeError, match=match):
        run_jit(kernel, specs(), golden_double, **options)
    assert compiler.calls == []


def test_device_options_are_accepted_and_said_to_do_nothing(
    compiler: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {"platform": "a2a3sim", "device_id": 3, "enable_pmu": 2, "enable_dep_gen": False}
    assert run_jit(kernel, specs(), golden_double, runtime_cfg=config).passed
    assert "[RUN] note: the simulator has no use for device_id, enable_pmu\n" in capsys.readouterr().out


def test_log_level(compiler: Compiler) -> None:
    logger = logging.getLogger("pypto_models")
    before = logger.level
    try:
        run_jit(kernel, specs(), golden_double, runtime_cfg={"log_level": "warn"})
        assert logger.level == logging.WARNING
        with pytest.raises(ValueError, match="log_level 'loud' is not one of debug, v0"):
            run_jit(kernel, specs(), golden_double, runtime_cfg={"log_level": "loud"})
    finally:
        logger.setLevel(before)


def test_compiler_warnings_are_shown(
    compiler: Compiler, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DOUBLE, "warnings", ("UB is 95 % full",))
    run_jit(kernel, specs(), golden_double)
    assert "[RUN]   warning: UB is 95 % full\n" in capsys.readouterr().out


def test_compiler_errors_pass_through(compiler: Compiler, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(fn: Any, *args: Any, platform: str) -> FakeProgram:
        raise ValueError("kernel.py:3: unknown operation 'ad'")

    monkeypatch.setattr(sys.modules["pypto_models.compile"], "compile", compile)
    with pytest.raises(ValueError, match="kernel.py:3: unknown operation 'ad'"):
        run_jit(kernel, specs(), golden_double)


def test_run_takes_a_compiled_program_or_compiles_one(compiler: Compiler) -> None:
    assert run(DOUBLE, specs(), golden_double).passed and compiler.calls == []
    assert run(kernel, specs(), golden_double).passed and len(compiler.calls) == 1
    assert run(DOUBLE, specs(), golden_double, compile_only=True).status == "SKIPPED"


@pytest.mark.parametrize(
    "options", [{"compile_cfg": {"dump_passes": "x"}}, {"runtime_cfg": {"platform": "a5sim"}}]
)
def test_run_rejects_what_comes_too_late(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="the program is compiled already"):
        run(DOUBLE, specs(), golden_double, **options)


def test_work_dir(compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_jit(kernel, specs(), golden_double).work_dir is None
    assert list(tmp_path.iterdir()) == []
    given = run_jit(kernel, specs(), golden_double, runtime_dir=tmp_path / "mine", save_data=True)
    assert given.work_dir == tmp_path / "mine" and (tmp_path / "mine/data/out/y.pt").is_file()
    named = run_jit(kernel, specs(), golden_double, save_data=True)
    assert named.work_dir is not None and named.work_dir.name.startswith("kernel_")
    assert (tmp_path / named.work_dir / "data/in/x.pt").is_file()
    assert run_jit(kernel, specs(), golden_data=tmp_path / "mine/data").passed


def test_a_result_reads_as_its_verdict() -> None:
    assert str(run(DOUBLE, specs(), golden_double)).startswith("PASS (0.")
    assert "s): validation skipped" in str(run(DOUBLE, specs()))
