"""The two entry points that scripts call: compile a kernel, run it, compare it with its golden."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from golden.config import RuntimeConfig, compile_options
from golden.execute import GoldenFn, execute_and_compare
from golden.program import is_program
from golden.report import Log, RunResult, say
from golden.spec import ScalarSpec, Spec
from golden.verdict import CompareFn


def run_jit(
    fn: Any,
    specs: Sequence[Spec],
    golden_fn: GoldenFn | None = None,
    golden_data: str | Path | None = None,
    compile_cfg: Mapping[str, Any] | None = None,
    runtime_cfg: Mapping[str, Any] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    compare_fn: CompareFn | None = None,
    compile_only: bool = False,
    runtime_dir: str | Path | None = None,
    save_data: bool = False,
    seed: int = 0,
) -> RunResult:
    """Compile ``fn`` for the specs, run it, and compare every tensor that it may change with the golden.

    Args:
        fn: a ``@pl.jit`` kernel.
        specs: one per parameter, in parameter order.
        golden_fn: called with a dictionary of all arguments (tensors, python numbers); writes the expected
            values into the tensors, in place. Pure outputs start as zeros.
        golden_data: directory of a recorded run (``in/``, ``out/``), used instead of generated inputs and
            golden_fn.
        compile_cfg: keyword options of ``pypto_models.compile.compile``.
        runtime_cfg: ``platform`` (default ``a2a3sim``), ``device_id``, ``log_level`` and the device's
            instrumentation flags, which a simulator does not use.
        rtol, atol: tolerance of :func:`golden.compare.allclose` and of comparators without their own.
        compare_fn: a comparator for all compared tensors, or one by name.
        compile_only: stop after compiling; the result is SKIPPED with ``passed`` True.
        runtime_dir: work directory.
        save_data: write ``<work_dir>/data/{in,out,actual}/<name>.pt``, the first two replayable as
            ``golden_data``. Without ``runtime_dir`` the work directory is ``build_output/<kernel>_<time>``.
        seed: of every random input.

    Raises:
        TypeError: an unknown key in ``compile_cfg`` or ``runtime_cfg``.
        pypto_models.errors.UserError: the kernel does not compile, or does something illegal while it runs.
    """
    # only here: the comparing half of the harness serves programs from anywhere
    from pypto_models.compile import compile as compile_program

    config = RuntimeConfig.of(runtime_cfg)
    options = compile_options(compile_program, compile_cfg)
    log = Log()
    _announce(config)
    with log.stage("compile"):
        args = [spec.number if isinstance(spec, ScalarSpec) else spec.placeholder() for spec in specs]
        program = compile_program(fn, *args, platform=config.platform, **options)
        for warning in program.warnings:
            say(f"  warning: {warning}")
    work_dir = _work_dir(runtime_dir, save_data, _name(fn))
    if compile_only:
        return log.result("SKIPPED", passed=True, note="compile only", work_dir=work_dir)
    return execute_and_compare(
        program,
        specs,
        golden_fn=golden_fn,
        golden_data=golden_data,
        rtol=rtol,
        atol=atol,
        compare_fn=compare_fn,
        work_dir=work_dir,
        save_data=save_data,
        seed=seed,
        log=log,
    )


def run(
    program: Any,
    specs: Sequence[Spec],
    golden_fn: GoldenFn | None = None,
    golden_data: str | Path | None = None,
    compile_cfg: Mapping[str, Any] | None = None,
    runtime_cfg: Mapping[str, Any] | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    compare_fn: CompareFn | None = None,
    compile_only: bool = False,
    runtime_dir: str | Path | None = None,
    save_data: bool = False,
    seed: int = 0,
) -> RunResult:
    """Like :func:`run_jit`, for a compiled program; one that is not compiled yet is compiled first.

    Raises:
        TypeError: an unknown key in ``compile_cfg`` or ``runtime_cfg``; options of the compiler, or a
            platform, for a program that is compiled already.
    """
    if not is_program(program):
        return run_jit(
            program,
            specs,
            golden_fn=golden_fn,
            golden_data=golden_data,
            compile_cfg=compile_cfg,
            runtime_cfg=runtime_cfg,
            rtol=rtol,
            atol=atol,
            compare_fn=compare_fn,
            compile_only=compile_only,
            runtime_dir=runtime_dir,
            save_data=save_data,
            seed=seed,
        )
    config = RuntimeConfig.of(runtime_cfg)
    if compile_cfg or "platform" in (runtime_cfg or {}):
        raise TypeError("the program is compiled already: compile_cfg and platform would have no effect")
    log = Log()
    _announce(config)
    work_dir = _work_dir(runtime_dir, save_data, _name(program))
    if compile_only:
        return log.result("SKIPPED", passed=True, note="compile only", work_dir=work_dir)
    return execute_and_compare(
        program,
        specs,
        golden_fn=golden_fn,
        golden_data=golden_data,
        rtol=rtol,
        atol=atol,
        compare_fn=compare_fn,
        work_dir=work_dir,
        save_data=save_data,
        seed=seed,
        log=log,
    )


def _announce(config: RuntimeConfig) -> None:
    config.apply_log_level()
    if config.ignored:
        say(f"note: the simulator has no use for {', '.join(config.ignored)}")


def _name(kernel: Any) -> str:
    return str(getattr(kernel, "__name__", None) or getattr(kernel, "name", None) or type(kernel).__name__)


def _work_dir(runtime_dir: str | Path | None, save_data: bool, name: str) -> Path | None:
    if runtime_dir is not None:
        directory = Path(runtime_dir)
    elif save_data:
        directory = Path("build_output") / f"{name}_{time.strftime('%Y%m%d_%H%M%S')}"
    else:
        return None
    directory.mkdir(parents=True, exist_ok=True)
    return directory
