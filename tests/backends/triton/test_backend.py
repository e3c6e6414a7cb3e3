"""The backend in the driver: platform names, bundles for both vendors, and programs that are interpreted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pypto_models.language as pl
from backends import BACKENDS
from backends.gpu.cache import FOLDER_VARIABLE
from backends.gpu.manifest import read_bundle
from backends.triton import GpuProgram, InterpretedProgram, TritonBackend
from backends.triton.compiler import TritonToolchain
from pypto_models.backend import Bundles, Emits, Prepares, Reopens
from pypto_models.compile import Program, resolve_platform
from pypto_models.compile import compile as compile_program
from pypto_models.errors import UserError

from ..cute.epilogue_kernels import DEPTH, WIDTH, added
from ..cute.support import project, twice, two_regions
from .support import needs_interpreter, needs_triton


# ---------------------------------------------------------------------------------------------- platforms
@pytest.mark.parametrize("platform", ["h200:triton", "h200triton", "gb10:triton", "mi300x", "mi355x"])
def test_platforms_that_mean_this_backend(platform: str) -> None:
    target, backend = resolve_platform(platform)
    assert platform.startswith(target.name) and backend is BACKENDS["triton"]
    assert isinstance(backend, TritonBackend)


def test_platforms_that_do_not() -> None:
    assert [resolve_platform(p)[1].name for p in ("h200", "gb10", "mi300xsim")] == ["cute", "cute", "sim"]
    with pytest.raises(UserError, match="triton does not cover a2a3: Triton compiles for sm_90a, sm_121a"):
        resolve_platform("a2a3:triton")
    with pytest.raises(UserError, match="cute does not cover mi300x: CuTe DSL compiles for NVIDIA GPUs"):
        resolve_platform("mi300x:cute")


def test_what_the_commands_use() -> None:
    for protocol in (Emits, Bundles, Prepares, Reopens):
        assert isinstance(BACKENDS["triton"], protocol)


def test_without_triton_compiling_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TritonToolchain, "missing", lambda self: "it is not there")
    assert BACKENDS["triton"].unusable() == "it is not there"
    why = r"compiling twice for mi300x needs triton[\s\S]*pypto-models\[triton\]"
    with pytest.raises(UserError, match=why):
        compile_program(twice, platform="mi300x")
    with pytest.raises(UserError, match=r"interpreting twice needs triton"):
        compile_program(twice, platform="mi300x", backend_options={"interpret": True})


# ------------------------------------------------------------------------------------------------ bundles
@needs_triton
@pytest.mark.parametrize(
    ("platform", "arch", "suffix", "warp", "waits"),
    [
        ("mi300x", "gfx942", "hsaco", 64, False),
        pytest.param("h200:triton", "sm_90a", "cubin", 32, True, marks=pytest.mark.slow),
    ],
)
def test_a_bundle(
    platform: str,
    arch: str,
    suffix: str,
    warp: int,
    waits: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    seen: list[tuple[int, int, str]] = []
    progress = lambda *given: seen.append(given)  # noqa: E731
    program = compile_program(two_regions, platform=platform, progress=progress)
    assert seen == [(1, 2, "first"), (2, 2, "second")]
    program.save(tmp_path / "bundle")
    manifest, binaries = read_bundle(tmp_path / "bundle")
    assert (manifest.backend, manifest.arch, manifest.kernels[0].file) == ("triton", arch, f"first.{suffix}")
    assert set(manifest.versions) == {"python", "triton"}
    for k in manifest.kernels:
        assert binaries[k.name].startswith(b"\x7fELF")
        assert dict(k.parameters) and k.extra_pointers == 2 and k.overlaps is waits
        assert k.threads % (4 * warp) == 0 and 0 < k.registers <= 512 and k.local_bytes == 0

    kept = {p.parent.parent.name for p in (tmp_path / "cache").glob("*/*/*.zip")}
    assert kept == {"triton"} and len(list((tmp_path / "cache").glob("triton/*/*.zip"))) == 2
    monkeypatch.setattr(TritonToolchain, "compile_units", None)  # nothing is compiled from here on
    options = {"bundle": str(tmp_path / "bundle")}
    again = compile_program(two_regions, platform=platform, backend_options=options).executable
    assert isinstance(again, GpuProgram) and again.binaries == binaries
    assert isinstance(program.executable, GpuProgram) and again.source == program.executable.source


# -------------------------------------------------------------------------------------------- interpreting
@pl.jit
def half(x: pl.Tensor[[32, 64], pl.FP32], y: pl.Out[pl.Tensor[[32, 64], pl.FP32]]):
    """Writes its input, and the upper half of its output."""
    with pl.at(level=pl.Level.CORE_GROUP):
        pl.assemble(x, pl.mul(pl.slice(x, [16, 64], [0, 0]), 2.0), [0, 0])
    with pl.at(level=pl.Level.CORE_GROUP):
        pl.assemble(y, pl.slice(x, [16, 64], [0, 0]), [0, 0])


def interpreted(kernel: pl.Kernel, platform: str = "h200:triton") -> Program:
    return compile_program(kernel, platform=platform, backend_options={"interpret": True})


@needs_interpreter
@pytest.mark.parametrize("platform", ["h200:triton", "mi300x"])
def test_regions_behind_one_another(platform: str) -> None:
    program = interpreted(two_regions, platform)
    assert isinstance(program.executable, InterpretedProgram)
    assert program.device == "cpu" and program.cannot_run() is None
    x, y, z = torch.randn(32, 64), torch.zeros(32, 64), torch.zeros(32, 1)
    seen: list[tuple[int, int, str]] = []
    program(x, y, z, progress=lambda *given: seen.append(given))
    assert torch.equal(y, x * 2)
    torch.testing.assert_close(z.double(), y.double().sum(1, keepdim=True), rtol=0, atol=1e-4)
    assert seen == [(1, 2, "first"), (2, 2, "second")]


@needs_interpreter
def test_run_time_extents() -> None:
    program = interpreted(twice)
    for rows in (1, 16, 37):
        x, y = torch.randn(rows, 64), torch.zeros(rows, 64)
        program(x, y)
        assert torch.equal(y, x * 2)


@needs_interpreter
def test_a_product() -> None:
    x, w = torch.randn(16, 512).bfloat16(), torch.randn(256, 512).bfloat16()
    residual, y = torch.randn(16, 256), torch.zeros(16, 256)
    interpreted(project)(x, w, residual, y)
    torch.testing.assert_close(y.double(), x.double() @ w.double().T + residual.double(), rtol=0, atol=2e-4)


@needs_interpreter
def test_a_product_is_added_once() -> None:
    """Of whole numbers, whose sums are exact."""
    x, w = torch.randint(-2, 3, (17, DEPTH)).bfloat16(), torch.randint(-2, 3, (WIDTH, DEPTH)).bfloat16()
    held = torch.randint(-9, 9, (17, WIDTH)).float()
    y = held.clone()
    interpreted(added)(x, w, y)
    assert torch.equal(y.double(), held.double() + x.double() @ w.double().T)


@needs_interpreter
def test_inputs_stay_and_what_is_not_written_is_poison() -> None:
    x, y = torch.ones(32, 64), torch.zeros(32, 64)
    interpreted(half)(x, y)
    assert torch.equal(x, torch.ones(32, 64))
    assert torch.equal(y[:16], torch.full((16, 64), 2.0)) and y[16:].isnan().all()


@needs_interpreter
def test_what_it_does_not_do(tmp_path: Path) -> None:
    program = interpreted(twice)
    with pytest.raises(ValueError, match="y has dtype torch.float64; it must be torch.float32"):
        program(torch.ones(4, 64), torch.ones(4, 64).double())
    with pytest.raises(UserError, match="twice is interpreted[\\s\\S]*build it without interpret=True"):
        program.save(tmp_path / "bundle")


@needs_triton
@pytest.mark.parametrize(("name", "value"), [("bundle", "folder"), ("timing", True)])
def test_options_that_do_not_go_together(name: str, value: object) -> None:
    options = {"interpret": True, name: value}
    with pytest.raises(UserError, match=f"argument 'interpret': it does not go together with {name}"):
        compile_program(twice, platform="mi300x", backend_options=options)


@needs_triton
def test_a_process_that_cannot_interpret_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.triton.backend.why_not", lambda: "Triton compiles in this process")
    why = r"'interpret': Triton compiles in this process[\s\S]*leave interpret out"
    with pytest.raises(UserError, match=why):
        interpreted(two_regions, "mi355x")
