"""K of a streamed product cut across CTAs: what becomes of a region, its values, and what is refused."""

from __future__ import annotations

import math
import re
from itertools import product

import pytest
import torch

import pypto_models.language as pl
from backends.cute.compiler import CuteToolchain
from backends.cute.lower import lower
from backends.gpu.matching import Product, match
from backends.gpu.module import Module
from backends.gpu.slices import sliced
from backends.gpu.toolchain import Refusal, Unit
from backends.gpu.unroll import unrolled
from backends.sim.machine import Machine
from models.qwen3_14b import decode_layer
from models.qwen3_14b.config import FULL
from pypto_models.compile import lower_for
from pypto_models.errors import UserError
from pypto_models.ir.nodes import Function, Region
from pypto_models.ir.rewrite import walk
from pypto_models.ir.verify import verify
from pypto_models.schedule import stream_traffic
from pypto_models.schedule.overrides import Override, overrides
from pypto_models.target import load_target

from .slice_kernels import (
    DEEP,
    WIDE,
    cut_by_hand,
    gated_product,
    in_a_loop,
    in_order,
    under_a_condition,
)
from .support import fields, needs_cutlass

H200 = load_target("h200")


def fixed(slices: int, across: str = "workspace", **more: int | str) -> dict[str, Override]:
    how: dict[str, int | str] = {} if (slices, across) == (1, "workspace") else {"across": across}
    return overrides({"product": {"slices": slices, **how, **more}})


def cut(slices: int, across: str = "workspace") -> Function:
    return sliced(unrolled(lower_for(gated_product, (), H200, {}).function), fixed(slices, across))


def module(slices: int, across: str = "workspace", **more: int | str) -> Module:
    given = fixed(slices, across, **more)
    return lower(lower_for(gated_product, (), H200, {}).function, H200, given=given)


def regions(function: Function) -> dict[str, Region]:
    return {s.name: s for s in walk(function.body) if isinstance(s, Region)}


# ------------------------------------------------------------------------------------------ what it becomes
@pytest.mark.parametrize(("across", "extra"), [("workspace", []), ("red", ["product_zero"])])
def test_a_region_becomes_its_slices_and_its_epilogue(across: str, extra: list[str]) -> None:
    found = regions(cut(4, across))
    assert list(found) == [*extra, "product", "product_epilogue"]
    part = match(found["product"])
    assert isinstance(part, Product)
    assert (part.slices, part.depth, len(part.results)) == (4, DEEP // 4, 2)


@pytest.mark.parametrize("rows", [1, 7, 16])
@pytest.mark.parametrize(("slices", "across"), [(1, "workspace"), *product((2, 8), ("workspace", "red"))])
def test_it_computes_the_same(slices: int, across: str, rows: int) -> None:
    """Of whole numbers, so that the sums are exact in any order."""
    function = cut(slices, across)
    verify(function)
    generator = torch.Generator().manual_seed(rows)
    x, w = (torch.randint(-2, 3, (n, DEEP), generator=generator).bfloat16() for n in (rows, 2 * WIDE))
    residual = torch.randint(-9, 9, (rows, WIDE), generator=generator).float()
    y = torch.full((rows, WIDE), torch.nan, dtype=torch.bfloat16)
    Machine(function).run({"x": x, "weight": w, "residual": residual, "y": y})
    one, other = (x.double() @ w.double().T).chunk(2, dim=1)
    assert torch.equal(y, (residual + one * other).bfloat16())


def test_a_slice_has_its_share_of_the_ctas() -> None:
    m = module(2)
    f = fields(next(k for k in m.kernels if k.name == "product"))
    assert (f["k"], f["columns"], f["slices"], f["ctas"] % 2) == (DEEP // 2, WIDE, 2, 0)


def test_sums_are_added_where_the_schedule_says_so() -> None:
    added, kept = (
        next(k.text for k in module(2, across).kernels if k.name == "product")
        for across in ("red", "workspace")
    )
    assert added.count("cute.arch.atomic_add(") == 2 and "atomic_add" not in kept


@pytest.mark.parametrize("across", ["workspace", "red"])
@pytest.mark.parametrize("slices", [2, 4])
@pytest.mark.parametrize("target", ["h200", "gb10"])
def test_the_slices_of_the_report_are_emitted(target: str, slices: int, across: str) -> None:
    """down_proj at its published size: each weight once in whole lines, no core with more than its share."""
    loaded, constants = load_target(target), decode_layer.cli_constants(target)
    given = overrides({"down_proj": {"slices": slices, "across": across}})
    found = lower_for(decode_layer.decode_layer_with_head, (), loaded, constants, schedules=given)
    (s,) = (x for x in found.schedules() if x.region == "down_proj")
    module = lower(found.function, loaded, given=found.overrides)
    kernels = {k.region: k for k in module.kernels}
    regions = [*kernels]
    f, k, stream = fields(kernels["down_proj"]), kernels["down_proj"], s.stream
    assert stream is not None and s.ring is not None and s.workspace is not None
    assert (f["k"], f["slices"], f["columns"]) == (FULL.intermediate // slices, slices, FULL.hidden)
    assert (f["ctas"], f["warps_n"], f["warps_k"]) == (s.ctas, stream.warps_n, stream.warps_k)
    assert (f["chunk"], f["stages"]) == (stream.step, s.ring.slots)
    assert (k.threads, k.shared_bytes) == (s.threads, s.shared_bytes)
    assert (f["k"] % f["chunk"], f["chunk"] * 2 % (128 * f["warps_k"])) == (0, 0)
    traffic = stream_traffic(s, loaded.cores)
    assert sum(traffic.by_cta) == FULL.intermediate * FULL.hidden * 2 and traffic.imbalance <= 1.04
    sums = (1 if across == "red" else slices) * 16 * FULL.hidden * 4
    assert s.workspace.bytes == sums
    (room,) = (w for w in module.workspaces if w.name == "down_proj_sums")
    assert (room.dtype, math.prod(map(int, room.shape))) == ("float32", sums // 4)
    zeroed = ["down_proj_zero and input_norm and attention_runs"] if across == "red" else []
    assert [r for r in regions if "_zero" in r] == zeroed, "no launch of its own"
    behind = ["out_proj", "gate_up_silu", "down_proj", "down_proj_epilogue"]
    assert regions[regions.index("out_proj") :][:4] == behind, "a product does the norm, as without slices"


# ------------------------------------------------------------------------------------------ what is refused
@pytest.mark.parametrize(
    ("slices", "more", "message"),
    [
        (3, {}, "its 8 steps of K are no multiple of 3 slices"),
        (2, {"finish": "consumer"}, "no consumer adds the slices"),
        (8, {"warps_k": 4}, "a slice of 128 elements of K is no multiple of a step of 256"),
        (1, {"across": "red"}, "across says what becomes of slices, and K is whole"),
    ],
)
def test_what_cannot_be_cut(slices: int, more: dict[str, int | str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        module(slices, **more)


@pytest.mark.parametrize("kernel", [in_a_loop, under_a_condition])
def test_what_does_not_run_once_is_not_cut(kernel: pl.Kernel) -> None:
    function = lower_for(kernel, (), H200, {}).function
    with pytest.raises(UserError, match="product runs in a loop or under a condition, and K is cut of what"):
        lower(function, H200, given=fixed(2))


def test_more_slices_than_cores() -> None:
    target, constants = load_target("gb10"), decode_layer.cli_constants("gb10")
    given = overrides({"down_proj": {"slices": 68}})
    found = lower_for(decode_layer.decode_layer_with_head, (), target, constants, schedules=given)
    (k,) = (k for k in lower(found.function, target, given=given).kernels if k.region == "down_proj")
    assert fields(k)["slices"] == 68 and fields(k)["ctas"] % 68 == 0


def test_a_schedule_for_another_size_cuts_nothing() -> None:
    sizes = {"rows": 16, "n": WIDE, "k": DEEP}
    assert len(module(2, **sizes).kernels) == 2
    assert len(module(2, **sizes | {"k": 512}).kernels) == 1


def test_tasks_wait_for_the_last_region_and_the_first_waits() -> None:
    function = sliced(unrolled(lower_for(in_order, (), H200, {}).function), fixed(2))
    verify(function)
    found = regions(function)
    assert found["product"].deps and found["product"].tid is None
    assert found["behind"].deps == (found["product_epilogue"].tid,)


def test_a_source_that_cuts_k_itself_is_no_product() -> None:
    """It adds to what others store, and its blocks are its own."""
    function = lower_for(cut_by_hand, (), H200, {}).function
    assert str(match(regions(function)["product"])).endswith("a load that does not walk the columns")


@needs_cutlass
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_90a", "sm_121a"])
@pytest.mark.parametrize("across", ["workspace", "red"])
def test_they_compile_without_spills(across: str, arch: str) -> None:
    m = module(2, across)
    (code,) = CuteToolchain().compile_units([Unit(m.source, list(m.kernels))], arch)
    assert not isinstance(code, Refusal), code
    assert all(c.resources.local_bytes == 0 for c in code.values())
    added = len(re.findall(r"\b(?:red|atom)\.[\w.]*add[\w.]*f32", code["product"].text))
    assert (added > 0) == (across == "red")
