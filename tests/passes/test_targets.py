"""Target descriptions: the figures of the targets, what loading refuses."""

from __future__ import annotations

import pytest

from pypto_models.errors import UserError
from pypto_models.ir.types import Mem
from pypto_models.target import known_targets, load_target, parse_target

KIB = 1024


def test_known_targets() -> None:
    assert {"a2a3", "a5", "gb10", "h200", "mi300x", "mi355x"} <= set(known_targets())
    for name in known_targets():
        assert load_target(name).name == name
        assert load_target(name) is load_target(name)


# Sizes as the vendor's SoC tables give them, in KiB; Vec without the part that must not be allocated.
SIZES = {
    "a2a3": {"Mat": 512, "Left": 64, "Right": 64, "Acc": 128, "Bias": 1, "Vec": 192 - 8},
    "a5": {"Mat": 512, "Left": 64, "Right": 64, "Acc": 256, "Bias": 4, "Vec": 248 - 8},
}


@pytest.mark.parametrize("name", SIZES)
def test_scratchpads(name: str) -> None:
    target = load_target(name)
    assert {mem.name: spec.bytes / KIB for mem, spec in target.spaces.items()} == SIZES[name]
    assert target.is_scratchpad and target.vector_lanes == 2
    assert target.orders == {"RAW", "WAW"}
    assert target.tile_align_bytes == 32 and target.fractal is not None
    assert (target.fractal.rows, target.fractal.row_bytes) == (16, 32)


def test_moves_of_the_scratchpads() -> None:
    a2a3, a5 = load_target("a2a3"), load_target("a5")
    assert a5.moves - a2a3.moves == {(Mem.Vec, Mem.Mat), (Mem.Acc, Mem.Vec)}  # a5 has them on chip
    assert (a2a3.handoff, a5.handoff) == ("gm", "onchip")
    for target in (a2a3, a5):
        assert target.can_move(Mem.Acc, Mem.Vec) and target.can_move(Mem.Vec, Mem.Mat)
        assert target.can_move(Mem.Acc, Mem.Mat)
        assert not target.can_move(Mem.Vec, Mem.Acc) and not target.can_move(Mem.Mat, Mem.Vec)
    assert (a2a3.cores, a5.cores) == (24, 2 * 18)


@pytest.mark.parametrize(
    ("name", "cores", "arch", "shared", "registers"),
    [
        ("gb10", 48, "sm_121a", 99 * KIB, 256 * KIB),
        ("h200", 132, "sm_90a", 227 * KIB, 256 * KIB),
        ("mi300x", 8 * 38, "gfx942", 64 * KIB, 512 * KIB),
        ("mi355x", 8 * 32, "gfx950", 160 * KIB, 512 * KIB),
    ],
)
def test_gpus(name: str, cores: int, arch: str, shared: int, registers: int) -> None:
    target = load_target(name)
    assert (target.kind, target.cores, target.arch) == ("gpu", cores, arch)
    assert {target.spaces[m].bytes for m in (Mem.Mat, Mem.Left, Mem.Right)} == {shared}
    assert {target.spaces[m].bytes for m in (Mem.Acc, Mem.Vec)} == {registers}
    assert target.gpu is not None and 4 * target.gpu.registers == registers
    assert target.orders == {"RAW", "WAW", "WAR"}
    assert target.can_move(Mem.Vec, Mem.Acc) and target.can_move(Mem.Mat, Mem.Vec)
    read, nominal = target.figures.read_bytes_per_s, target.figures.nominal_bytes_per_s
    assert read is not None and nominal is not None and 0.8 <= read / nominal < 1


# TFLOPS as the data sheets give them: bf16 and fp32 products, dense.
DATA_SHEETS = {"mi300x": (1307.4, 163.4), "mi355x": (2516.6, 157.3)}


@pytest.mark.parametrize("name", DATA_SHEETS)
def test_amd(name: str) -> None:
    """Published figures agree with one another; what was not published and not measured counts as assumed."""
    target = load_target(name)
    figures, (half, single) = target.figures, DATA_SHEETS[name]
    assert figures.cube_flops_per_cycle and figures.clock_hz and figures.fp32_mma_passes
    flops = target.cores * figures.cube_flops_per_cycle * figures.clock_hz
    assert flops == pytest.approx(half * 1e12, rel=1e-3)
    assert flops / figures.fp32_mma_passes == pytest.approx(single * 1e12, rel=1e-3)
    assert {"read_bytes_per_s", "load_latency_s", "launch_s"} <= target.assumed
    assert target.gpu is not None and target.gpu.warp_threads == 64
    assert load_target("h200").gpu.warp_threads == 32  # type: ignore[union-attr]


def test_unknown_target() -> None:
    known = "a2a3, a5, gb10, h200, mi300x, mi355x"
    with pytest.raises(UserError, match=rf"unknown target 'a4'\n  fix: known: {known}$"):
        load_target("a4")


GOOD = """
name: toy
description: a toy
kind: scratchpad
cores: 1
vector_lanes: 1
spaces: {Vec: {bytes: 1024, align: 32}}
moves: {DDR: [Vec], Vec: [DDR]}
handoff: gm
orders: [RAW]
"""


def test_parse() -> None:
    toy = parse_target(GOOD, "toy.yaml")
    assert toy.moves == {(Mem.DDR, Mem.Vec), (Mem.Vec, Mem.DDR)}
    assert (toy.slots, toy.fractal, toy.tile_align_bytes, toy.figures.clock_hz) == (2, None, None, None)
    assert hash(toy) == hash(parse_target(GOOD, "toy.yaml")) and toy == parse_target(GOOD, "toy.yaml")


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("kind: scratchpad", "kind: abacus", "kind is 'abacus', one of scratchpad, gpu is expected"),
        ("cores: 1\n", "", "'cores'"),
        ("handoff: gm", "handoff: gm\nspeed: 3", r"unknown keys \['speed'\]"),
        ("[DDR]}", "[DDR, L9]}", "memory space is 'L9'"),
        ("orders: [RAW]", "orders: [RAR]", "orders is 'RAR'"),
        ("bytes: 1024, ", "", "'bytes'"),
    ],
)
def test_bad_descriptions(before: str, after: str, why: str) -> None:
    assert before in GOOD
    with pytest.raises(UserError, match=rf"toy.yaml: this is not a target description: .*{why}"):
        parse_target(GOOD.replace(before, after), "toy.yaml")
