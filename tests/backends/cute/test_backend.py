"""The backend in the driver: platform names, options, emitted text."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from backends import BACKENDS
from backends.cute import CuteBackend, compiler
from backends.cute.compiler import CuteToolchain
from pypto_models.backend import Bundles, Emits
from pypto_models.compile import compile as compile_program
from pypto_models.compile import platforms, resolve_platform
from pypto_models.errors import UserError

from .support import module_of, project, shifted, twice


@pytest.mark.parametrize("platform", ["h200", "h200cute", "h200:cute", "gb10"])
def test_a_gpu_by_itself_means_this_backend(platform: str) -> None:
    target, backend = resolve_platform(platform)
    assert target.name == platform.removesuffix("cute").rstrip(":")
    assert isinstance(backend, CuteBackend)


def test_the_simulator_keeps_its_names() -> None:
    assert resolve_platform("h200sim")[1] is resolve_platform("h200:sim")[1] is BACKENDS["sim"]
    assert {"h200", "gb10", "h200sim", "gb10sim"} <= set(platforms())
    assert not {"a2a3", "a2a3cute", "a5cute"} & set(platforms())


@pytest.mark.parametrize("target", ["a2a3", "mi300x"])
def test_it_covers_nvidia_gpus_only(target: str) -> None:
    why = rf"cute does not cover {target}: CuTe DSL compiles for NVIDIA GPUs\n  fix: use .*{target}sim"
    with pytest.raises(UserError, match=why):
        resolve_platform(f"{target}:cute")
    with pytest.raises(UserError, match="unknown platform 'a2a3'"):
        resolve_platform("a2a3")


def test_what_the_commands_use() -> None:
    assert isinstance(BACKENDS["cute"], Emits) and isinstance(BACKENDS["cute"], Bundles)
    assert not isinstance(BACKENDS["sim"], Emits | Bundles)


def test_without_cutlass_compiling_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)
    backend = BACKENDS["cute"]
    assert "pip install 'pypto-models[cute]'" in str(backend.unusable())
    why = r"compiling twice for h200 needs nvidia-cutlass-dsl[\s\S]*pypto-models\[cute\]"
    with pytest.raises(UserError, match=why):
        compile_program(twice, platform="h200")
    with pytest.raises(UserError, match=r"compiling for sm_90a needs nvidia-cutlass-dsl"):
        CuteToolchain().compile_units([], "sm_90a")


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'schedule'"):
        compile_program(twice, platform="h200", backend_options={"schedule": "random"})


@pytest.mark.parametrize("target", ["h200", "gb10"])
@pytest.mark.parametrize("kernel", [twice, project], ids=lambda k: k.name)
def test_the_emitted_source(kernel: object, target: str, golden_text: Callable[[str, str], None]) -> None:
    golden_text(module_of(kernel, target).source, f"{kernel.name}_{target}")  # type: ignore[arg-type, attr-defined]


def test_emitting_is_deterministic_and_needs_no_compiler() -> None:
    code = (
        "import sys\nfrom tests.backends.cute.support import module_of, project\n"
        "print(module_of(project).source)\n"
        "assert 'cutlass' not in sys.modules\n"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1] and "stream.Stream(" in runs[0]


def test_a_barrier_stands_between_reads_and_writes_of_one_tensor() -> None:
    (kernel,) = module_of(shifted).kernels
    read, write = kernel.text.index("block.load_run("), kernel.text.index("block.store_run(")
    assert read < kernel.text.index("cute.arch.sync_threads()") < write
    assert "sync_threads" not in module_of(twice).kernels[0].text
