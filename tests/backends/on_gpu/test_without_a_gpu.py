"""What the tests of this folder rest on, checked without a GPU: on the simulator, on made-up reports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backends.gpu.cache import FOLDER_VARIABLE
from backends.gpu.manifest import BundleError
from backends.gpu.program import GpuProgram
from backends.gpu.toolchain import Refusal, Results, Unit
from golden import run
from models.common import block_kernels
from models.common.power import STEPS
from models.qwen3_5_27b import gdn_blocks
from pypto_models.backend import Progress
from pypto_models.compile import Program
from pypto_models.compile import compile as compile_program
from pypto_models.language import Kernel

from ..cute.support import CountingCompiler, twice, two_regions
from . import prepare, programs, sanitize
from .catalogue import (
    SMALL,
    Entry,
    Platform,
    as_gb10,
    block_entry,
    blocks,
    entries,
    layers,
    not_as_gb10,
    not_sliced,
    platform,
    step_entry,
)
from .prepare import Lowered, lowered
from .programs import Replayed, bundled_backend, gpu_platform, load, options
from .programs import twice as run_twice
from .test_graphs import assert_serves_all
from .test_layers import assert_within_gb10

H200, TRITON = platform("h200"), platform("h200:triton")
CPU = {"device": "cpu"}


def at_once(call: Callable[[], object]) -> Callable[[], object]:
    """In place of a graph."""
    return call


def simulated(entry: Entry) -> Program:
    return compile_program(entry.kernel, platform="h200sim", constants=entry.constants)


# ------------------------------------------------------------------------------------------ the catalogue
def test_every_block_and_layer_is_there() -> None:
    kernels = [k for m in (block_kernels, gdn_blocks) for k in vars(m).values() if isinstance(k, Kernel)]
    wanted = {k.name for k in kernels if not k.inline and k.name.endswith("_block")}
    assert len(wanted) == 16
    for size, dtype in (("tiny", "bf16"), ("tiny", "fp32"), ("real_heads", "bf16")):
        names = {n.split("/")[-1] for n in blocks() if f"/{size}/{dtype}/" in n}
        assert names == wanted, (size, dtype)
        kinds = {n.split("/")[1] for n in layers() if n.endswith(f"/{size}/{dtype}")}
        assert kinds == {"full", "gdn"}


def test_blocks_meet_1_3_and_16_sequences_or_rows() -> None:
    for one in blocks().values():
        name = one.block.kernel.name
        if one.block.runs == len(STEPS):
            assert {len(step.lengths) for step in one.layer.power.steps} >= {1, 3, 16}, name
            assert len(one.seeds) == len(one.layer.power.steps) == len(STEPS) + 3
            longest = max(n for step in one.layer.power.steps for n in step.lengths)
            assert longest == one.layer.config.max_seq
        else:
            assert name in ("greedy_block", "gates_block") or one.seeds == (0, 1, 14, 16), name
    one = blocks()["qwen3_14b/tiny/bf16/down_block"]
    inputs = [one.block.inputs(one.layer.power, one.layer.config, seed) for seed in one.seeds]
    assert [len(tensors["x"]) for tensors in inputs] == [5, 16, 3, 1]


def test_the_names_are_those_of_the_entries() -> None:
    names = [name for name, _ in entries(H200)]
    assert len(names) == len({*names}) >= 100
    assert {f"blocks/{n}" for n in blocks()} | {f"layers/{n}/span" for n in layers()} < {*names}
    own = ("gb10/", "sliced/")
    assert [name for name, _ in entries(TRITON)] == [n for n in names if not n.startswith(own)]
    assert not_as_gb10(H200) is None and "not triton's" in str(not_as_gb10(TRITON))
    assert not_sliced(H200) is None and "of triton take whole K" in str(not_sliced(TRITON))


def test_a_platform_has_a_backend_for_a_gpu() -> None:
    assert (TRITON.name, TRITON.tiling, H200.tiling) == ("h200:triton", "h200.triton", "h200")
    with pytest.raises(ValueError, match="h200sim is no GPU"):
        platform("h200sim")


def test_gb10_keeps_its_limits() -> None:
    target = as_gb10(H200).target
    assert (target.name, target.cores, target.arch) == ("gb10", 48, "sm_90a")
    assert {s.bytes for s in target.spaces.values()} == {101_376, 262_144}


# --------------------------------------------------------------------------------- running it in other ways
@pytest.mark.parametrize("name", ["14b/tiny/bf16/attention_block", "5_27b/tiny/fp32/out_norm_block"])
def test_a_block_passes_on_the_simulator(name: str) -> None:
    one = blocks()[f"qwen3_{name}"]
    program = simulated(block_entry(one, H200))
    for seed in one.seeds[-3:]:
        check = one.block.check(one.layer.power, one.layer.config, seed)
        result = run(run_twice(program, **CPU), check.specs, seed=seed, **options(check))
        assert result.status == "PASS", result.error


@dataclass
class Drifting:
    """A program that adds one more each time to what another one leaves in ``y``."""

    program: Program
    calls: int = 0

    @property
    def params(self) -> tuple[Any, ...]:
        return self.program.params

    @property
    def written(self) -> frozenset[str]:
        return self.program.written

    warnings: tuple[str, ...] = ()

    def __call__(self, *args: Tensor) -> None:
        self.program(*args)
        args[1][3, 5] += self.calls
        self.calls += 1


def test_a_second_run_must_leave_the_same_bits() -> None:
    x, y = torch.randn(20, 64), torch.empty(20, 64)
    program = compile_program(twice)
    run_twice(program, **CPU)(x, y)
    assert torch.equal(y, x * 2)
    with pytest.raises(AssertionError, match=f"y differs between two runs, first at element {3 * 64 + 5}"):
        run_twice(Drifting(program), **CPU)(x, y)


GDN = "qwen3_5_27b/gdn/tiny/bf16"


@pytest.mark.parametrize("name", [GDN, "qwen3_14b/full/tiny/bf16"])
def test_a_replay_serves_every_live_batch(name: str) -> None:
    layer = layers()[name]
    program = simulated(step_entry(layer, H200))
    assert_serves_all(layer, Replayed(program, at_once), program, (1, 16), **CPU)


@dataclass
class Frozen:
    """A program that takes some arguments from its first call, as a graph does with what is on the host."""

    program: Program
    names: tuple[str, ...]
    kept: dict[str, Tensor] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def params(self) -> tuple[Any, ...]:
        return self.program.params

    @property
    def written(self) -> frozenset[str]:
        return self.program.written

    def __call__(self, *args: Tensor) -> None:
        given = []
        for p, a in zip(self.params, args, strict=True):
            given.append(self.kept.setdefault(p.name, a.clone()) if p.name in self.names else a)
        self.program(*given)


@pytest.mark.parametrize("frozen", ["cu_q", "state_slots"])
def test_a_graph_that_knows_who_was_live_is_noticed(frozen: str) -> None:
    layer = layers()[GDN]
    program = simulated(step_entry(layer, H200))
    graph = Replayed(Frozen(program, (frozen,)), at_once)
    with pytest.raises(AssertionError, match="differs between two runs|live sequences"):
        assert_serves_all(layer, graph, program, (2, 16), **CPU)


def test_a_step_that_touches_a_dead_state_fails() -> None:
    """Both runs agree, so that only the golden can notice."""
    layer = layers()[GDN]
    sound = simulated(step_entry(layer, H200))
    state = [p.name for p in sound.params].index("state")

    @dataclass
    class Touching(Drifting):
        def __call__(self, *args: Tensor) -> None:
            self.program(*args)
            args[state][0] += 1.0

    wrong = Touching(sound)
    with pytest.raises(AssertionError, match="live sequences[\\s\\S]*'state' FAIL"):
        assert_serves_all(layer, Replayed(wrong, at_once), wrong, (3,), **CPU)


# ----------------------------------------------------------------------------------------------- bundles
@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "bundles"


def small(on: Platform = H200) -> list[Lowered]:
    return [lowered(f"small/{k.name}", Entry(k, on, {})) for k in SMALL]


def test_the_bundles_say_by_which_backend_the_tests_run(
    no_compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(programs.CudaDriver, "gpu", lambda device: "sm_90")
    gpu_platform.cache_clear()
    prepare.prepare(TRITON.backend, no_compiler, small(TRITON), CountingCompiler())
    assert gpu_platform(no_compiler) == TRITON and gpu_platform(None) == H200
    monkeypatch.setenv(programs.BACKEND_VARIABLE, "triton")
    gpu_platform.cache_clear()
    assert gpu_platform(None) == TRITON
    gpu_platform.cache_clear()
    monkeypatch.setenv(programs.BACKEND_VARIABLE, "sim")
    with pytest.raises(LookupError, match="h200:sim is no GPU"):
        gpu_platform(None)
    monkeypatch.setattr(programs.CudaDriver, "gpu", lambda device: "sm_75")
    with pytest.raises(LookupError, match="no target is for sm_75"):
        gpu_platform(None)


@pytest.mark.parametrize(("on", "kernels"), [(H200, 21), (TRITON, 24)], ids=["cute", "triton"])
def test_what_is_prepared_is_loaded(on: Platform, kernels: int, no_compiler: Path) -> None:
    counting = CountingCompiler()
    size = prepare.prepare(on.backend, no_compiler, small(on), counting)
    assert size == sum(f.stat().st_size for f in no_compiler.rglob("*") if f.is_file())
    asked = [name for unit in counting.wanted for name in unit]
    assert len(asked) == len({*asked}) == kernels
    for kernel in SMALL:
        program = load(f"small/{kernel.name}", Entry(kernel, on, {}), no_compiler)
        assert program.device == "cuda" and program.compiled.name == kernel.name
    assert bundled_backend(no_compiler) == on.backend.name
    prepare.prepare(on.backend, no_compiler, small(on), counting)
    assert sum(map(len, counting.wanted)) == kernels  # all of them were in the cache


def test_a_bundle_of_other_sources_is_refused(no_compiler: Path) -> None:
    prepare.prepare(H200.backend, no_compiler, small(), CountingCompiler())
    with pytest.raises(BundleError, match="twice was not built from these sources for sm_90a: run python -m"):
        load("small/twice", Entry(twice, H200, {"SCALE": 3.0}), no_compiler)
    other = replace(H200, target=replace(H200.target, arch="sm_100a"))
    with pytest.raises(BundleError, match="was not built from these sources for sm_100a"):
        load("small/twice", Entry(twice, other, {}), no_compiler)
    with pytest.raises(BundleError, match="is no bundle"):
        load("small/none", Entry(two_regions, H200, {}), no_compiler)


def test_the_limits_of_gb10_are_noticed(no_compiler: Path) -> None:
    layer = layers()["qwen3_14b/full/real_heads/bf16"]
    programs = {p.name: lowered(p.name, step_entry(layer, p)) for p in (as_gb10(H200), H200)}
    prepare.prepare(H200.backend, no_compiler, list(programs.values()), CountingCompiler())
    within = load("gb10", step_entry(layer, as_gb10(H200)), no_compiler)
    assert_within_gb10(within, cores=48)
    with pytest.raises(AssertionError, match="{'qkv_proj': "):
        assert_within_gb10(within, cores=40)
    beyond = load("h200", step_entry(layer, H200), no_compiler)
    manifest = beyond.executable.manifest  # type: ignore[attr-defined]
    renamed = GpuProgram(replace(manifest, target="gb10"), {}, "")
    with pytest.raises(AssertionError, match="gate_up_silu|qkv_proj|attention"):
        assert_within_gb10(replace(beyond, executable=renamed), cores=48)


def test_what_is_too_large_or_refused_is_an_error(no_compiler: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(units: Sequence[Unit], arch: str, progress: Progress | None) -> Results:
        return [Refusal(u.kernels[0].name, "no") for u in units]

    with pytest.raises(ValueError, match="small/twice: nvidia-cutlass-dsl refused twice: no"):
        prepare.prepare(H200.backend, no_compiler, small(), refusing)
    monkeypatch.setattr(prepare, "LIMIT_BYTES", 1 << 10)
    with pytest.raises(ValueError, match=r"takes 0\.\d MiB, 0 at most"):
        prepare.prepare(H200.backend, no_compiler, small(), CountingCompiler())


# --------------------------------------------------------------------------------------- compute-sanitizer
MEMCHECK = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 16 bytes
=========     at kernel_attention_3+0x1f0
=========     by thread (31,0,0) in block (2,0,0)
=========     Access at 0x7f1230000400 is out of bounds
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: cuLaunchKernelEx [0x3344f0] in libcuda.so.1
=========
========= Invalid __global__ write of size 16 bytes
=========     at kernel_attention_3+0x1f0
=========     by thread (30,0,0) in block (2,0,0)
the program has run
========= ERROR SUMMARY: 2 errors
"""
RACECHECK = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at kernel_gdn_conv_2+0x520 and Read access at \
kernel_gdn_conv_2+0x8d0 [16 hazards]
=========
========= Warning: Potential WAR hazard detected at __shared__ 0x40 in block (0,0,0) :
=========     Write Thread (1,0,0) at kernel_rope_1+0x70
=========     Read Thread (0,0,0) at kernel_rope_1+0x90
the program has run
========= RACECHECK SUMMARY: 2 hazards displayed (1 error, 1 warning)
"""
CLEAN = "========= COMPUTE-SANITIZER\nthe program has run\n========= ERROR SUMMARY: 0 errors\n"


def test_reports_are_counted_by_kernel_and_place() -> None:
    write = ("Invalid __global__ write of size 16 bytes", "kernel_attention_3", "+0x1f0")
    assert sanitize.parse(MEMCHECK) == (2, Counter({write: 2}))
    assert sanitize.parse(RACECHECK) == (
        2,
        Counter(
            {
                ("Error: race of Write at +0x520 and Read at +0x8d0", "kernel_gdn_conv_2", ""): 1,
                ("Warning: Potential WAR hazard detected", "kernel_rope_1", "+0x70"): 1,
            }
        ),
    )
    assert sanitize.parse(CLEAN) == (0, Counter())
    assert sanitize.parse("Traceback\n") == (None, Counter())


def test_a_summary_says_what_was_not_clean(capsys: pytest.CaptureFixture[str]) -> None:
    def made(output: str, why: str = "") -> sanitize.Run:
        errors, reports = sanitize.parse(output)
        return sanitize.Run("memcheck", "a layer", errors, reports, sanitize.RAN in output, 1.0, why)

    assert sanitize.summarise([made(CLEAN), made(CLEAN)]) == 0
    assert "2 of 2 runs clean" in capsys.readouterr().out
    assert sanitize.summarise([made(CLEAN), made(MEMCHECK)]) == 1
    said = capsys.readouterr().out
    assert "memcheck:    2 x kernel_attention_3+0x1f0: Invalid __global__ write of size 16 bytes" in said
    assert "1 of 2 runs clean" in said
    assert sanitize.summarise([made("========= ERROR SUMMARY: 0 errors\n", "did not run: ...")]) == 2
    assert not made("========= ERROR SUMMARY: 0 errors\n").clean


def test_a_tool_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text("#!/bin/sh\necho '========= COMPUTE-SANITIZER'\nsleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = sanitize.sanitize("memcheck", "a layer", tmp_path, limit=0.5)
    assert found.why == "stopped after 0 s" and not found.clean and found.seconds < 10
    tool.write_text(f"#!/bin/sh\nprintf '{CLEAN.replace(chr(10), chr(92) + 'n')}'\n")
    assert sanitize.sanitize("memcheck", "a layer", tmp_path, limit=10).clean
    tool.write_text("#!/bin/sh\necho 'Device not supported'\nexit 1\n")
    found = sanitize.sanitize("memcheck", "a layer", tmp_path, limit=10)
    assert found.why == "did not run: Device not supported"


def test_it_says_that_the_tool_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert sanitize.main([str(tmp_path)]) == 2
    assert "compute-sanitizer is not on the PATH" in capsys.readouterr().err
