"""The command line of the models on a GPU target: compiled anywhere, kept, loaded, timed where it can run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from backends.cute import compiler
from models.common import frontdoor, step_time
from models.common.config import DecoderConfig
from models.common.harness import LayerKind
from models.common.step_bytes import StepBytes
from models.qwen3_5_27b import harness as qwen3_5
from models.qwen3_14b import harness as qwen3
from pypto_models.compile import Program, compile
from pypto_models.errors import Diag, Span, UserError
from tests.backends.cute.support import CountingCompiler, needs_cutlass
from tests.models import door

DOORS: dict[str, tuple[door.Main, list[str]]] = {
    "qwen3_14b": (qwen3.main, []),
    "qwen3_5_27b": (qwen3_5.main, ["--layer", "gdn"]),
}
TINY = ["--config", "tiny", "--lm-head", "skip", "-b", "2"]


@pytest.fixture
def counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CountingCompiler:
    """In place of the compiler, with an empty cache."""
    counter = CountingCompiler()
    monkeypatch.setenv("PYPTO_MODELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler.CuteToolchain, "compile_units", counter)
    return counter


# --------------------------------------------------------------------------------- where there is no GPU
@needs_cutlass
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("target", ["h200", "gb10"])
@pytest.mark.parametrize("model", DOORS)
def test_without_a_gpu_it_compiles_and_is_skipped(
    model: str, target: str, counting: CountingCompiler, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, kind = DOORS[model]
    path = tmp_path / "r.json"
    given = [*kind, *TINY, "-p", target, "--json", str(path)]
    assert main(given) == 2
    said = capsys.readouterr().out
    assert sum(map(len, counting.wanted)) >= 8
    assert "compile done" in said and "make inputs" not in said
    assert "[RUN] SKIPPED" in said and "is built without CUDA" in said
    assert "warning" not in said  # its memory was planned with the schedules
    found = door.report(path)
    assert (found["status"], found["passed"], found["tensors"], found["time"]) == ("SKIPPED", False, [], None)
    assert found["error"].startswith("compiled, but not run: torch")
    assert main([*given, "--compile-only"]) == 0
    assert door.report(path)["passed"] and door.report(path)["error"] is None


@needs_cutlass
def test_a_long_compilation_says_how_far_it_is(
    counting: CountingCompiler, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("golden.report.time.perf_counter", lambda: float(next(clock)))
    assert qwen3.main([*TINY, "-p", "h200", "--compile-only"]) == 0
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("[RUN]   ")]
    (wanted,) = counting.wanted
    shown = [f"[RUN]   {i}/{len(wanted)} {name}" for i, name in enumerate(wanted, 1)]
    assert [x for x in lines if "/" in x] == shown


# ------------------------------------------------------------------------------------------------ bundles
@needs_cutlass
def test_a_bundle_is_written_and_loaded(
    counting: CountingCompiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert qwen3.main([*TINY, "-p", "h200", "--compile-only", "-o", "b"]) == 0
    assert {"manifest.json", "kernels.py", "qkv_proj.cubin"} <= {f.name for f in (tmp_path / "b").iterdir()}
    compiled = len(counting.wanted)
    monkeypatch.setattr(compiler.importlib.util, "find_spec", lambda name: None)  # no CUTLASS from here on
    assert qwen3.main([*TINY, "-p", "h200", "--compile-only", "--bundle", "b"]) == 0
    assert len(counting.wanted) == compiled


REFUSED = {
    "-p gb10": "b holds decode_layer for h200, not decode_layer for gb10",
    "-p h200 --lm-head single": "b holds decode_layer for h200, not decode_layer_with_head for h200",
    "-p h200 --tokens 2": "b was built from another source of decode_layer, or other constants",
    "-p h200 --dtype fp32": "b was built from another source of decode_layer, or other constants",
    "-p h200 --config full": "b was built from another source of decode_layer, or other constants",
    "-p h200 --bundle none": "none is no bundle",
}


@needs_cutlass
@pytest.mark.parametrize("arguments", REFUSED)
def test_another_bundle_is_refused_with_the_command_that_makes_it(
    arguments: str,
    counting: CountingCompiler,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert qwen3.main([*TINY, "-p", "h200", "--compile-only", "-o", "b"]) == 0
    capsys.readouterr()
    given = ["--bundle=b", *TINY, *arguments.split()]
    assert qwen3.main(given) == 2
    said = capsys.readouterr()
    assert REFUSED[arguments] in said.err
    folder = "none" if "none" in arguments else "b"
    asked = " ".join([*TINY, *arguments.replace(" --bundle none", "").split()])
    assert f"decode_layer.py {asked} --compile-only -o {folder}\n" in said.err
    assert "Traceback" not in said.err and "make inputs" not in said.out


# ------------------------------------------------------------------------------- the time, on a stand-in
class Slow:
    """A device that takes a microsecond for every call, with memory for a few copies."""

    def __init__(self, free: int, l2: int = 0) -> None:
        self.free_bytes, self.l2_bytes = free, l2
        self.calls: list[int] = []

    def moved(self, tensor: Tensor) -> Tensor:
        return tensor.clone()

    def seconds(self, calls: Sequence[Callable[[], object]], replays: int) -> list[float]:
        for call in calls:
            call()
        self.calls.append(len(calls))
        return [len(calls) * (1 + i % 3) * 1e-6 for i in range(replays)]


MOVED = StepBytes(600_000, 40_000, 20_000)


def timed(device: Slow, published: float | None = 1e12) -> tuple[step_time.StepTime, set[int]]:
    seen = set()

    def program(x: Tensor, y: Tensor) -> None:
        seen.add(x.data_ptr())
        y.copy_(x)

    tensors = {"x": torch.ones(1000), "y": torch.zeros(1000)}
    time = step_time.time_step(program, tensors, MOVED, published, device)
    assert not tensors["y"].any()  # copies are what runs
    return time, seen


def test_copies_take_turns_and_the_median_counts() -> None:
    device = Slow(free=1 << 30)
    time, seen = timed(device)
    assert (time.copies, len(seen), device.calls) == (6, 6, [1, 24])
    assert (time.least, time.median, time.most) == pytest.approx((1e-6, 2e-6, 3e-6))
    assert time.floor == pytest.approx(0.66e-6) and time.share == pytest.approx(0.33)
    lines = "\n".join(time.lines())
    assert "time 2.0 us a step: median of 30 graph replays (1.0 to 3.0), 6 copies" in lines
    assert "floor 0.7 us: weights 0.6 MB, KV 0.0 MB, states 0.0 MB at 1 TB/s, the best read" in lines
    assert "share of the floor 33.0%" in lines and "note" not in lines
    assert time.report()["share_of_floor"] == pytest.approx(0.33)


def test_what_weakens_a_figure_is_said() -> None:
    few, seen = timed(Slow(free=20_000))
    assert few.copies == len(seen) == 2
    assert "6 copies do not fit into memory" in "\n".join(few.lines())
    cached, _ = timed(Slow(free=1 << 30, l2=60 << 20))
    assert "hardly larger than the L2 cache" in "\n".join(cached.lines())
    plain, _ = timed(Slow(free=1 << 30), published=None)
    assert plain.ceiling == plain.read_rate == pytest.approx((1 << 28) / 2e-6)
    with pytest.raises(ValueError, match="one copy of the tensors takes 0.0 GiB; the device has less free"):
        timed(Slow(free=5000))


# Published sizes: weights and states per sequence as counted by hand from the shapes of the checkpoints
BY_HAND = {
    "qwen3_14b/full": (660.6e6, 4096, 0),
    "qwen3_5_27b/full": (744.5e6, 4096, 0),
    "qwen3_5_27b/gdn": (766.5e6, 0, 6.291e6 + 0.123e6),
}
KINDS = {f"{k.model}/{k.name}": k for k in (qwen3.LAYER, qwen3_5.FULL_LAYER, qwen3_5.GDN_LAYER)}


@pytest.mark.slow
@pytest.mark.parametrize("name", BY_HAND)
def test_the_bytes_of_a_step(name: str) -> None:
    kind = KINDS[name]
    tensors = kind.make_inputs(kind.configs["full"], 2, [100, 28], lm_head="skip")
    moved = kind.bytes_of(kind.configs["full"], tensors)
    weights, per_token, state = BY_HAND[name]
    assert moved.weights == pytest.approx(weights, rel=1e-3)
    assert moved.kv == 128 * per_token
    assert moved.states == pytest.approx(2 * state, rel=1e-3)


@pytest.mark.parametrize("name", KINDS)
def test_the_bytes_of_dead_sequences_and_of_several_rows(name: str) -> None:
    kind = KINDS[name]
    config = kind.configs["tiny"]

    def moved(**options: Any) -> StepBytes:
        tensors = kind.make_inputs(config, 3, [40, 20, 7], seed=1, span=4, **options)
        return kind.bytes_of(config, tensors, options.get("lm_head", "skip"))

    one, dead, several = moved(), moved(dead_rows=[0]), moved(tokens=[4, 1, 2])
    assert one.weights == dead.weights == several.weights
    if kind.name == "gdn":
        state = config.v_heads * config.k_dim * config.v_dim * 4
        column = config.conv_dim * 2
        assert one.states == 3 * (2 * state + 6 * column)
        assert dead.states == 2 * (2 * state + 6 * column)
        assert several.states == (3 + 7) * state + (3 * 5 + 7) * column
    else:
        token = 2 * config.kv_heads * config.head_dim * 2
        assert (one.kv, dead.kv, several.kv) == (67 * token, 27 * token, 67 * token)
    head = moved(lm_head="full").weights - one.weights
    assert head == config.vocab_padded * config.hidden * 2


@dataclass(frozen=True, eq=False)
class Elsewhere(LayerKind):
    """A layer kind whose programs are the simulator's, with tensors on a device of their own."""

    def compile(self, config: DecoderConfig, platform: str, *args: Any, **options: Any) -> Any:
        return There(compile_of(self, config))


def compile_of(kind: LayerKind, config: DecoderConfig) -> Program:
    return compile(kind.kernel, platform="h200sim", **kind.compile_options(config, "h200sim", "skip"))


@dataclass
class There:
    """``cpu:0`` is a device of its own to torch: what moves there is copied."""

    program: Program
    device: str = "cpu:0"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.program, name)

    def __call__(self, *args: Any) -> None:
        self.program(*args)

    def cannot_run(self) -> None:
        return None


def elsewhere() -> LayerKind:
    return Elsewhere(**{f: getattr(qwen3.LAYER, f) for f in qwen3.LAYER.__dataclass_fields__})


def test_where_it_runs_it_is_compared_and_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(frontdoor, "Gpu", lambda: Slow(free=1 << 30))
    path = tmp_path / "r.json"
    given = [*TINY, "-p", "h200", "--json", str(path)]
    assert frontdoor.run_front_door([elsewhere()], Path("decode_layer.py"), given) == 0
    found = door.report(path)
    assert found["status"] == "PASS" and found["time"]["copies"] == 6
    assert found["time"]["ceiling_bytes_per_s"] == 4.61e12
    assert found["seconds"].keys() >= {"compile", "make inputs", "runtime", "time"}
    assert "share of the floor" in capsys.readouterr().out


def test_a_wrong_result_is_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.json"
    wrong = replace(elsewhere(), golden=door.wrong_in(qwen3.LAYER, "next_hidden").golden)
    given = [*TINY, "-p", "h200", "--dtype", "fp32", "--json", str(path)]
    assert frontdoor.run_front_door([wrong], Path("decode_layer.py"), given) == 1
    assert door.report(path)["time"] is None
    assert "share of the floor" not in capsys.readouterr().out


def test_an_error_of_the_kernel_still_exits_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(self: LayerKind, *args: Any, **options: Any) -> Any:
        raise UserError(Diag.ARGUMENT, Span("kernel.py", 3), {"name": "x", "why": "wrong", "fix": "mend"})

    monkeypatch.setattr(LayerKind, "compile", refused)
    assert qwen3.main([*TINY, "-p", "h200", "--bundle", "b"]) == 1
    assert "wrong" in capsys.readouterr().err
