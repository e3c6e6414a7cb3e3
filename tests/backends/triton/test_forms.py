"""How streamed products are divided for Triton: every column once, whole lines, within the shared memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from backends.gpu.matching import Product, match
from backends.gpu.plans import facts
from backends.triton.backend import TritonBackend
from backends.triton.forms import Form, form_of, ranked
from pypto_models.compile import lower_for, resolve_platform, tiling_name
from pypto_models.errors import UserError
from pypto_models.ir.nodes import Region
from pypto_models.ir.rewrite import walk
from pypto_models.ir.types import Mem
from pypto_models.schedule.overrides import overrides
from pypto_models.target import load_target
from pypto_models.tuning.choices import schedules, values_of
from tools.gpu_bench.catalogue import ENTRIES

TARGETS = ("h200", "gb10", "mi300x", "mi355x")
LINE = 64  # elements of 128 bytes


def products(name: str) -> Iterator[tuple[str, Product]]:
    """The streamed products of the Qwen3-14B layer at its published size."""
    target, backend = resolve_platform(f"{name}:triton")
    entry = ENTRIES["qwen3_14b/full"]
    constants = entry.constants(entry.kind.configs["full"], tiling_name(target, backend))
    function = lower_for(entry.kernel, (), target, constants, schedules={}).function
    for s in walk(function.body):
        if isinstance(s, Region) and isinstance(found := match(s), Product):
            yield s.name, found


def dealt(form: Form) -> list[int]:
    """Columns of each block."""
    each, more = divmod(form.columns, form.walkers)
    return [each + (i < more) for i in range(form.walkers)]


@pytest.mark.parametrize("name", TARGETS)
def test_the_products_of_a_layer_are_dealt_evenly_in_whole_lines(name: str) -> None:
    target = load_target(name)
    seen = []
    for region, product in products(name):
        form = form_of(product, target)
        assert isinstance(form, Form), region
        shares = dealt(form)
        assert sum(shares) == form.columns and min(shares) > 0, region
        assert max(shares) <= form.pad and max(shares) <= 1.04 * form.columns / form.walkers, region
        assert form.step % LINE == 0 and product.depth % form.step == 0, region
        assert form.shared_bytes <= target.spaces[Mem.Mat].bytes, region
        seen.append(region)
    assert seen == ["qkv_proj", "out_proj", "gate_up_silu", "down_proj"]


def test_only_hopper_has_the_weights_as_the_rows_of_the_product() -> None:
    found = {name: dict(products(name)) for name in ("h200", "gb10")}
    first = {
        (name, region): form.weights_first
        for name, regions in found.items()
        for region, product in regions.items()
        if isinstance(form := form_of(product, load_target(name)), Form)
    }
    assert first["h200", "down_proj"] and not first["h200", "gate_up_silu"]
    assert not any(turned for (name, _), turned in first.items() if name == "gb10")


def test_what_a_tiling_file_fixes_holds_and_what_cannot_be_is_refused() -> None:
    target, (_, qkv) = load_target("h200"), next(products("h200"))
    given = overrides({"qkv_proj": {"step": 64, "slots": 5, "walkers": 264}})["qkv_proj"]
    form = form_of(qkv, target, "qkv_proj", 1, given)
    assert isinstance(form, Form)
    assert (form.step, form.stages, form.walkers) == (64, 5, 264)
    for keys, why in (
        (
            {"slots": 5, "walkers": 100, "step": 256},
            "Triton holds no such tiles: powers of two",
        ),
        ({"slices": 2}, "Triton's products take whole K"),
        ({"slots": 8, "walkers": 132, "step": 256}, "bytes of shared memory, and a block has 232448"),
    ):
        given = overrides({"qkv_proj": {**keys, "warps_n": 4, "warps_k": 1}})["qkv_proj"]
        with pytest.raises(UserError, match=f"qkv_proj cannot be streamed like this: .*{why}"):
            form_of(qkv, target, "qkv_proj", 1, given)


def test_tuning_measures_what_triton_can_emit_and_its_default_first() -> None:
    target, backend = load_target("h200"), TritonBackend()
    entry = ENTRIES["qwen3_14b/qkv"]
    constants = entry.constants(entry.kind.configs["full"], "h200.triton")
    domain = lower_for(entry.kernel, (), target, constants, schedules={}).domains[-1]
    _, product = next(products("h200"))
    found = schedules(domain, target, 6, backend)
    assert len(found) == 6
    default = form_of(product, target)
    assert isinstance(default, Form) and values_of(found[0]) == values_of(default.schedule)
    facts_of_product = facts(product)
    assert facts_of_product is not None
    every = [values_of(f.schedule) for f in ranked(facts_of_product, target, domain.name, 1)]
    assert all(values_of(s) in every for s in found)
    for s in found:  # each is a form when it is given
        given = overrides({"qkv_proj": values_of(s)})["qkv_proj"]
        form = form_of(product, target, "qkv_proj", 1, given)
        assert isinstance(form, Form) and values_of(form.schedule) == values_of(s)
