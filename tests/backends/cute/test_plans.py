"""What the emitted kernels do with weights and shared memory at the published sizes, on both GPUs.

The figures are read from the emitted text.  They are held against the tensors of the program, and against the
schedules that the planner reports for the same program.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from backends.cute.compiler import CuteToolchain
from backends.cute.lower import lower
from backends.gpu.module import KernelSource
from backends.gpu.plans import RESERVED
from backends.gpu.toolchain import Unit, compile_unit
from models.qwen3_5_27b.config import FULL as FULL_27B
from models.qwen3_5_27b.harness import FULL_LAYER, GDN_LAYER
from models.qwen3_14b import decode_layer
from models.qwen3_14b.config import FULL as FULL_14B
from models.qwen3_14b.harness import LAYER
from pypto_models.backend import Compiled
from pypto_models.compile import lower_for
from pypto_models.errors import UserError
from pypto_models.ir.types import Mem, TensorType
from pypto_models.kernel_file import KernelFile
from pypto_models.schedule import Schedule, stream_traffic
from pypto_models.schedule.overrides import overrides
from pypto_models.target import Target, load_target

from .support import fields, needs_cutlass, project, twice

TARGETS = ("h200", "gb10")
PRODUCTS = ("qkv_proj", "out_proj", "gate_up_silu", "down_proj", "lm_head")
BALANCE = 1.04  # the busiest core's bytes over the mean
LINE = 128
ELEMENT = 2  # bytes


@cache
def layer(target: str) -> Compiled:
    constants = decode_layer.cli_constants(target)
    return lower_for(decode_layer.decode_layer_with_head, (), load_target(target), constants)


@cache
def kernels(target: str) -> dict[str, KernelSource]:
    found = layer(target)
    module = lower(found.function, load_target(target), given=found.overrides)
    return {k.region: k for k in module.kernels}


def schedule(target: str, region: str) -> Schedule:
    return next(s for s in layer(target).schedules() if s.region == region)


def norm_bytes(f: dict[str, int]) -> int:
    """What a norm of the rows takes: weights in fp32 for each stage, a scale for each row.  Its fields go."""
    scales = f.pop("scales")
    assert f.pop("parts") in [fields(kernels(t)["out_proj"])["ctas"] for t in TARGETS]
    return 4 * f["stages"] * f["chunk"] + max(128, 4 * 16 * f["m_tiles"] * scales)


@dataclass(frozen=True)
class Weights:
    """The tensor that a product streams."""

    rows: int
    row_bytes: int


def weights(target: str, region: str) -> Weights:
    s = schedule(target, region).stream
    assert s is not None
    (name,) = {w.tensor for w in s.weights}
    (found,) = (p.var.type for p in layer(target).function.params if p.name == name)
    assert isinstance(found, TensorType) and isinstance(found.shape[0], int)
    assert isinstance(found.shape[1], int) and found.dtype.bytes == ELEMENT
    return Weights(found.shape[0], found.shape[1] * ELEMENT)


both = pytest.mark.parametrize(("target", "region"), [(t, r) for t in TARGETS for r in PRODUCTS])


@both
def test_each_weight_byte_is_read_once_in_whole_lines(target: str, region: str) -> None:
    f, w = fields(kernels(target)[region]), weights(target, region)
    assert f["w_pitch"] * ELEMENT == w.row_bytes and w.row_bytes % LINE == 0
    assert f["columns"] * f["accumulators"] == w.rows, "every weight row belongs to one CTA"
    assert f["slices"] == 1, "nobody asked for more"
    assert f["k"] * ELEMENT == w.row_bytes and f["k"] % f["chunk"] == 0, "and is read to its end, once"
    assert f["chunk"] * ELEMENT % (LINE * f["warps_k"]) == 0, "in whole lines, of which each warp has its own"


@both
def test_the_busiest_core_and_the_traffic_of_x(target: str, region: str) -> None:
    f, w = fields(kernels(target)[region]), weights(target, region)
    each, more = divmod(f["columns"], f["ctas"])
    shares = [(each + (i < more)) * f["accumulators"] * w.row_bytes for i in range(f["ctas"])]
    cores = load_target(target).cores
    by_core = [sum(shares[c::cores]) for c in range(cores)]
    mean = w.rows * w.row_bytes / cores
    assert sum(shares) == w.rows * w.row_bytes
    assert max(by_core) <= BALANCE * mean, "an idle core counts"
    traffic = stream_traffic(schedule(target, region), cores)
    assert tuple(shares) == traffic.by_cta and traffic.imbalance == max(by_core) / mean
    assert traffic.x_bytes == f["ctas"] * 16 * f["m_tiles"] * f["k"] * ELEMENT
    assert traffic.x_bytes <= 0.42 * traffic.total


@both
def test_the_backend_emits_the_schedule_of_the_report(target: str, region: str) -> None:
    f, k, s = fields(kernels(target)[region]), kernels(target)[region], schedule(target, region)
    assert s.stream is not None and s.ring is not None
    assert s.stream.owner == "cta" and s.stream.units == s.ctas, "as device/stream.py runs it"
    norm = norm_bytes(f) if region == "gate_up_silu" else 0  # it does the norm of its rows
    assert f == {
        "k": s.stream.k, "slices": s.stream.slices, "slice_pitch": f["slice_pitch"], "x_pitch": f["x_pitch"],
        "w_pitch": s.stream.weights[0].pitch_bytes // ELEMENT,
        "columns": s.stream.n, "accumulators": s.stream.accumulators, "ctas": s.ctas,
        "warps_n": s.stream.warps_n, "warps_k": s.stream.warps_k, "chunk": s.stream.step,
        "stages": s.ring.slots, "burst": f["burst"], "m_tiles": s.stream.rows // 16,
    }  # fmt: skip
    assert (k.threads, k.shared_bytes - norm) == (s.threads, s.shared_bytes)
    assert s.threads == 32 * (s.warps + 1), "a warp copies the rows"
    units = -(-f["columns"] // (8 * f["ctas"])) * f["accumulators"]
    stage = (8 * units + 16 * f["m_tiles"]) * f["chunk"] * ELEMENT
    sums = f["warps_k"] * 16 * f["m_tiles"] * 8 * units * 4
    assert k.shared_bytes - norm == max(f["stages"] * stage, sums), "the ring, and the sums in its place"


@both
def test_a_burst_is_half_of_what_an_sm_needs_under_way(target: str, region: str) -> None:
    f, gpu = fields(kernels(target)[region]), load_target(target).gpu
    assert gpu is not None
    units = -(-f["columns"] // (8 * f["ctas"])) * f["accumulators"]
    stage = 8 * units * f["chunk"] * ELEMENT  # of weights
    two = schedule(target, region).resident and f["ctas"] > load_target(target).cores
    blocks = 2 if two else 1  # of an SM at a time
    off = f["burst"] * stage * blocks - gpu.in_flight_bytes / 2
    assert 1 <= f["burst"] < f["stages"]
    assert abs(off) <= stage * blocks / 2 or (f["burst"] == 1 and off > 0)


@needs_cutlass
@pytest.mark.parametrize(("burst", "stages", "paced"), [(1, 3, 2), (1, 6, 4), (2, 7, 5), (2, 3, 3)])
def test_the_last_stage_of_a_ring_does_not_wait_where_others_do(burst: int, stages: int, paced: int) -> None:
    from backends.cute.device.stream import Stream

    assert Stream.paced.fget(SimpleNamespace(burst=burst, stages=stages)) == paced  # type: ignore[attr-defined]


def test_overrides_reach_the_emitted_kernel() -> None:
    h200 = load_target("h200")
    keys: dict[str, int | str] = {"warps_n": 8, "warps_k": 1, "slots": 7}
    given = overrides({"project": keys})
    found = lower_for(project, (), h200, schedules=given)
    (k,) = lower(found.function, h200, given=found.overrides).kernels
    assert {"warps_n": 8, "warps_k": 1, "chunk": 64, "stages": 7}.items() <= fields(k).items()
    (s,) = found.schedules()
    assert s.ring is not None and s.ring.slots == 7, "the report knows it too"
    (default,) = lower(found.function, h200).kernels
    for size in ({"rows": 32}, {"n": 128}, {"k": 1024}):  # of another product
        other = lower_for(project, (), h200, schedules=overrides({"project": keys | size}))
        (k,) = lower(other.function, h200, given=other.overrides).kernels
        assert fields(k) == fields(default) and fields(k)["stages"] != 7


def test_a_tiling_file_beside_the_kernel_holds(tmp_path: Path) -> None:
    source = Path(__file__).with_name("support.py").read_text()
    (tmp_path / "kernel.py").write_text(source.partition("\ndef module_of")[0])
    (tmp_path / "tiling").mkdir()
    (tmp_path / "tiling" / "h200.yaml").write_text("schedule:\n  project: {slots: 3}\n  other: {slots: 2}\n")
    h200 = load_target("h200")
    found = lower_for(KernelFile.load(tmp_path / "kernel.py").entry("project"), (), h200)
    (k,) = lower(found.function, h200, given=found.overrides).kernels
    assert fields(k)["stages"] == 3 and set(found.overrides) == {"project"}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"slots": 99}, "bytes of shared memory, and a block has 232448"),
        ({"slices": 2, "step": 384}, "project: a slice of 256 elements of K is no multiple of a step of 384"),
        ({"owner": "warp"}, "project cannot be streamed like this: whole K steps of one ring"),
        ({"step": 192}, "project cannot be streamed like this: whole K steps of one ring"),
        ({"columns": 4, "walkers": 32}, "32 CTAs walk over 64 units"),
    ],
)
def test_an_override_that_the_backend_cannot_emit(keys: dict[str, Any], message: str) -> None:
    h200 = load_target("h200")
    found = lower_for(project, (), h200, schedules=overrides({"project": keys}))
    with pytest.raises(UserError, match=message):
        lower(found.function, h200, given=found.overrides)


def test_an_override_of_what_is_no_product() -> None:
    h200 = load_target("h200")
    found = lower_for(twice, (), h200, schedules=overrides({"twice": {"warps": 4}}))
    with pytest.raises(UserError, match="twice is no streamed product: it has not exactly one loop"):
        lower(found.function, h200, given=found.overrides)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"launch": "tail"}, "launch is 'tail'"),
        ({"launch": "own", "warps": 4}, "twice is no streamed product"),
    ],
)
def test_a_wrong_wish_for_a_launch(keys: dict[str, Any], message: str) -> None:
    h200 = load_target("h200")
    with pytest.raises(UserError, match=message):
        found = lower_for(twice, (), h200, schedules=overrides({"twice": keys}))
        lower(found.function, h200, given=found.overrides)


# ------------------------------------------------------------------------------------------ all of gb10
GB10_PROGRAMS = [
    (kind, config, head, rows, span)
    for kind, config in ((LAYER, FULL_14B), (FULL_LAYER, FULL_27B), (GDN_LAYER, FULL_27B))
    for head, rows, span in (("full", 16, 1), ("skip", 64, 4))
]


@pytest.mark.parametrize(("kind", "config", "head", "rows", "span"), GB10_PROGRAMS)
def test_everything_fits_gb10_at_full_size(kind: Any, config: Any, head: Any, rows: int, span: int) -> None:
    gb10: Target = load_target("gb10")
    constants = kind.compile_options(config, "gb10", head, rows=rows, span=span)["constants"]
    found = lower_for(kind.kernel_for(head), (), gb10, constants)
    module = lower(found.function, gb10, given=found.overrides)
    for k in module.kernels:
        assert k.shared_bytes <= gb10.spaces[Mem.Mat].bytes - RESERVED, k.name
    streamed = {k.region for k in module.kernels if k.how == "stream"}
    assert streamed == {*PRODUCTS[:4], *(("lm_head",) if head == "full" else ())}


@needs_cutlass
@pytest.mark.slow
def test_the_largest_kernels_of_gb10_compile_without_spills() -> None:
    gb10 = load_target("gb10")
    constants = FULL_LAYER.compile_options(FULL_27B, "gb10", "skip", rows=16)["constants"]
    module = lower(lower_for(FULL_LAYER.kernel, (), gb10, constants).function, gb10)
    large = {k.name: k for k in module.kernels if k.region in ("gate_up_silu", "down_proj", "attention")}
    code = compile_unit(CuteToolchain(), Unit(module.source, [*large.values()]), str(gb10.arch))
    assert len(large) == 3
    for name, k in large.items():
        used = code[name].resources
        assert used.local_bytes == 0 and used.registers * k.threads <= 65536, name
        s = next((x for x in layer("gb10").schedules() if x.region == k.region and x.stream), None)
        assert s is None or abs(used.registers - s.registers.total) < 64, "the plan's estimate is near"


def test_an_override_for_one_size_leaves_what_is_no_product_alone() -> None:
    h200 = load_target("h200")
    keys: dict[str, int | str] = {"rows": 16, "n": 64, "k": 64, "slots": 3}
    found = lower_for(twice, (), h200, schedules=overrides({"twice": keys}))
    assert lower(found.function, h200, given=found.overrides).source == lower(found.function, h200).source
