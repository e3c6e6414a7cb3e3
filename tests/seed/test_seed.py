"""The dense decode layer: it fits at full size, runs right when small, and breaks in known ways by name."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import pypto_models.language as pl
from pypto_models.compile import Compiled, Program, compile, lower_for
from pypto_models.errors import Diag, UserError
from pypto_models.ir.types import Mem
from pypto_models.language import Kernel
from pypto_models.target import load_target
from tests.seed import dense_layer, reference
from tests.seed.reference import Sizes, Tensors

SMALL = Sizes(
    hidden=96, heads=10, kv_heads=2, head_dim=32, intermediate=128, vocab=64, page=16, max_pages=4, k_tile=32,
    n_tile=32, final_tile=16, head_k=32, head_n=16,
)  # fmt: skip
REAL_TILES = Sizes(
    hidden=512, heads=10, kv_heads=2, head_dim=128, intermediate=512, vocab=128, page=128, max_pages=3,
    k_tile=256, n_tile=256, final_tile=128, head_k=128, head_n=64, dtype=torch.bfloat16,
)  # fmt: skip

# Batches of 1 to 16, contexts that end inside of a page, at its end and after one token
BATCHES = [[1], [64, 1, 16, 17, 33], [5] * 13, list(range(1, 65, 4))]


def constants(sizes: Sizes) -> dict[str, Any]:
    named = {
        f.name.upper(): getattr(sizes, f.name) for f in fields(sizes) if f.name not in ("layers", "dtype")
    }
    return {
        **named,
        "GROUP": sizes.group,
        "ELEM": {torch.float32: pl.FP32, torch.bfloat16: pl.BF16}[sizes.dtype],
    }


def sized(sizes: Sizes, **changes: Any) -> Sizes:
    return Sizes(**{f.name: getattr(sizes, f.name) for f in fields(sizes)} | changes)


@functools.cache
def program(kernel: Kernel, sizes: Sizes) -> Program:
    return compile(kernel, platform="a2a3sim", constants=constants(sizes), check=True)


def step(program: Program, sizes: Sizes, lens: list[int]) -> tuple[Tensors, Tensors]:
    """One step in the simulator and in torch, from the same inputs: (got, expected)."""
    want = reference.inputs(sizes, lens)
    got = {name: t.clone() for name, t in want.items()}
    got["out"] = torch.full((len(lens), sizes.vocab), float("nan"))
    program(*got.values())
    want["out"] = reference.run(want, sizes)
    return got, want


# ------------------------------------------------------------------------------------------- full size
REGIONS = [  # name, unit, split, launched as, blocks
    ("copy_hidden", "vec", "NONE", "parallel", 1),
    ("rmsnorm", "vec", "NONE", "parallel", 1),
    ("q_proj", "cube", "NONE", "parallel", 20),
    ("k_proj", "cube", "NONE", "parallel", 4),
    ("v_proj", "cube", "NONE", "parallel", 4),
    ("qk_norm", "vec", "NONE", "parallel", 1),
    ("rope_kv_cache", "vec", "NONE", "parallel", dense_layer.USER_BATCH),
    ("fa_fused", "mixed", "NONE", "spmd", 64),
    ("online_softmax", "vec", "NONE", "spmd", 128),
    ("out_proj", "mixed", "UP_DOWN", "spmd", 20),
    ("post_rmsnorm", "vec", "NONE", None, None),
    ("gate_up_silu", "mixed", "UP_DOWN", "spmd", 68),
    ("down_proj", "mixed", "UP_DOWN", "spmd", 20),
    ("final_rmsnorm", "vec", "NONE", "parallel", 1),
    ("lm_head", "cube", "NONE", "parallel", 2376),
    ("lm_head_store", "vec", "NONE", "parallel", 2376),
]


def full_size(kernel: Kernel, target: str = "a2a3", changed: dict[str, int] | None = None) -> Compiled:
    """The layer at full size after all passes, verified after each; ``changed`` are other constants."""
    return lower_for(kernel, (), load_target(target), changed, check=True)


@pytest.mark.parametrize("target", ["a2a3", "a5"])
def test_at_full_size_every_region_fits(target: str) -> None:
    compiled = full_size(dense_layer.dense_layer, target)
    rows = [
        (
            t.name,
            t.unit.value,
            t.split.name,
            *((t.grid[0].kind, t.grid[0].extent) if t.grid else (None, None)),
        )
        for t in compiled.graph.tasks
    ]
    assert rows == REGIONS
    assert compiled.plan.checked
    assert [r.name for r in compiled.plan.regions] == [name for name, *_ in REGIONS]
    table = compiled.plan.table()
    assert max(share for *_, share in table) <= 1.0
    # [16, 640] fp32 and its square, with a column of 80 to scale by and its copy: the largest vector tiles
    assert max(peak for *_, space, peak, _, _ in table if space == "Vec") >= 2 * 16 * 640 * 4
    # two weight tiles and one of the activation
    mat = {region: peak for region, _, _, space, peak, *_ in table if space == "Mat"}
    assert mat["gate_up_silu"] == (2 * 256 * 256 + 16 * 256) * 2


def test_the_layer_has_no_hazard() -> None:
    """Scratch is written once and every read follows its write, so neither chip's order is at fault."""
    for kernel in (dense_layer.dense_layer, dense_layer.two_dense_layers):
        for target in ("a2a3", "a5"):
            compiled = full_size(kernel, target)
            assert compiled.graph.hazards == ()
            assert compiled.warnings == ()


# ------------------------------------------------------------------------------------------------ values
def compare(got: Tensors, want: Tensors, rtol: float, atol: float) -> None:
    """The logits and both caches agree; every other argument is as it was."""
    for name, t in want.items():
        written = name in ("out", "k_cache", "v_cache")
        torch.testing.assert_close(
            got[name], t, rtol=rtol if written else 0.0, atol=atol if written else 0.0, equal_nan=True,
            msg=lambda m, n=name: f"{n}: {m}",
        )  # fmt: skip


@pytest.mark.parametrize("lens", BATCHES, ids=lambda lens: f"batch{len(lens)}")
@pytest.mark.parametrize("layers", [1, 2])
def test_a_step_in_fp32_agrees_with_torch(layers: int, lens: list[int]) -> None:
    sizes = sized(SMALL, layers=layers)
    kernel = dense_layer.dense_layer if layers == 1 else dense_layer.two_dense_layers
    got, want = step(program(kernel, sizes), sizes, lens)
    assert want["out"].abs().mean() > 0.5
    compare(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("lens", BATCHES, ids=lambda lens: f"batch{len(lens)}")
def test_a_step_in_bf16_rounds_where_torch_rounds(lens: list[int]) -> None:
    sizes = sized(SMALL, dtype=torch.bfloat16)
    got, want = step(program(dense_layer.dense_layer, sizes), sizes, lens)
    # Sums in another order turn a rounding now and then: one ulp of one hidden element is 2^-7 of it
    compare(got, want, rtol=2**-7, atol=4e-3)


def test_a_step_with_the_tiles_of_the_full_size() -> None:
    got, want = step(program(dense_layer.dense_layer, REAL_TILES), REAL_TILES, [300, 128, 1])
    compare(got, want, rtol=2**-7, atol=4e-3)


# ------------------------------------------------------------------------------------------------ faults
Planter = Callable[..., ModuleType]


@pytest.fixture
def plant(tmp_path: Path) -> Planter:
    """``plant((old, new), ...)``: the module of the layer with pieces of its text replaced."""

    def build(*changes: tuple[str, str]) -> ModuleType:
        text = Path(dense_layer.__file__).read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1, f"{text.count(old)} places match {old!r}"
            text = text.replace(old, new)
        file = tmp_path / "planted.py"
        file.write_text(text, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("planted", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return build


def place(module: ModuleType, text: str) -> str:
    """``planted.py:<line>:`` of the only line with this text, as a pattern."""
    lines = Path(str(module.__file__)).read_text(encoding="utf-8").splitlines()
    (line,) = (i for i, candidate in enumerate(lines, 1) if text in candidate)
    return rf"planted\.py:{line}:"


def run_small(module: ModuleType, lens: list[int]) -> tuple[Tensors, Tensors]:
    planted = compile(module.dense_layer, platform="a2a3sim", constants=constants(SMALL))
    return step(planted, SMALL, lens)


@pytest.mark.parametrize(
    "change",
    [
        ("all_oi = pl.assemble(all_oi, oi,", "all_oi = pl.assemble(all_oi, pl.mul(oi, 0.0),"),
        ("for sb in pl.range(1, pages):", "for sb in pl.range(1, pl.min(pages, 2)):"),
        ("GROUP_PAD // 2, valid_len)", "GROUP_PAD // 2, PAGE)"),
        ("pl.row_expand_mul(oi_new, beta)", "oi_new"),
        ("k_lo_rot = pl.sub(", "k_lo_rot = pl.add("),
        ("act = pl.mul(pl.mul(gate, sigmoid), up)", "act = pl.mul(gate, up)"),
        ("total = pl.add(d_acc,", "total = pl.sub(d_acc,"),
    ],
    ids=["no-attention", "half-context", "no-mask", "no-rescale", "rope-sign", "no-silu", "residual-sign"],
)  # fmt: skip
def test_the_comparison_sees_a_wrong_layer(plant: Planter, change: tuple[str, str]) -> None:
    got, want = run_small(plant(change), [64, 1, 16, 17, 33])
    with pytest.raises(AssertionError, match=r"(out|k_cache): Tensor-likes are not close"):
        compare(got, want, rtol=1e-3, atol=1e-2)


def test_half_of_the_kv_heads_left_out(plant: Planter) -> None:
    """One of the two groups of a pair is never computed; merging reads its partial."""
    module = plant(("for gi in pl.pipeline(2, stage=2):", "for gi in pl.pipeline(1, stage=2):"))
    where = place(module, "oi = pl.slice(all_oi, [GROUP_PAD, HEAD_DIM], [first, 0])")
    message = (
        r"pl\.slice reads all_oi\[64, 0\], which was never written(.|\n)*block 1 of region 'online_softmax'"
    )
    with pytest.raises(UserError, match=rf"{where}(.|\n)*{message}") as caught:
        run_small(module, [64, 1, 16, 17, 33])
    assert caught.value.diag is Diag.UNINITIALISED


def test_a_padded_lane_without_its_clamp(plant: Planter) -> None:
    module = plant(("live_b = pl.min(fa_b, user_batch - 1)", "live_b = fa_b"))
    where = place(module, "pl.tensor.read(seq_lens, [live_b])")
    message = (
        r"pl\.read reads seq_lens\[13\] outside of its extents \[13\](.|\n)*block 13 of region 'fa_fused'"
    )
    with pytest.raises(UserError, match=rf"{where}(.|\n)*{message}") as caught:
        run_small(module, [5] * 13)
    assert caught.value.diag is Diag.BOUNDS


def test_rows_below_the_batch_left_unwritten(plant: Planter) -> None:
    """Without the zeros every region would compute with whatever memory holds."""
    module = plant(("padded = pl.fillpad(part, pad_value=pl.PadValue.zero)", "padded = part"))
    where = place(module, "part = pl.cast(pl.slice(x, [BATCH, width], [0, kb * width])")
    message = r"pl\.slice reads current_hidden\[13, 0\], which was never written(.|\n)*region 'rmsnorm'"
    with pytest.raises(UserError, match=rf"{where}(.|\n)*{message}"):
        run_small(module, [5] * 13)


def test_an_attention_output_wider_than_its_buffer(plant: Planter) -> None:
    """The buffer has the width of the residual stream, 96, and the heads together 320."""
    module = plant(
        (
            "attn_out = pl.create_tensor([BATCH, HEADS * HEAD_DIM]",
            "attn_out = pl.create_tensor([BATCH, HIDDEN]",
        )
    )
    where = place(module, "attn_out = pl.assemble(attn_out, flat,")
    message = r"pl\.assemble(.|\n)*attn_out(.|\n)*96"
    with pytest.raises(UserError, match=rf"{where}(.|\n)*{message}"):
        run_small(module, [5])


def test_a_split_region_that_transposes_its_row_sums(plant: Planter) -> None:
    """The sums of one lane's rows are half of a row [1, BATCH]."""
    module = plant(
        (
            "resid1_tile = pl.assemble(resid1_tile, pl.add(o_acc, residual), [0, n0])",
            "resid1 = pl.add(o_acc, residual)\n"
            "        sums = pl.row_sum(pl.mul(resid1, resid1))\n"
            "        as_row = pl.reshape(sums, [1, BATCH])\n"
            "        scaled = pl.row_expand_mul(resid1, pl.reshape(as_row, [BATCH, 1]))\n"
            "        resid1_tile = pl.assemble(resid1_tile, scaled, [0, n0])",
        )
    )
    where = place(module, "as_row = pl.reshape(sums, [1, BATCH])")
    message = r"pl\.reshape cannot run under SplitMode\.UP_DOWN: .*\[16, 1\] FP32"
    with pytest.raises(UserError, match=rf"{where}.*{message}") as caught:
        full_size(module.dense_layer)
    assert caught.value.diag is Diag.SPLIT


# ------------------------------------------------------------------------------------------------ budget
def test_weight_tiles_too_large_for_l1(plant: Planter) -> None:
    """Twice [512, 256] bf16 alone are the 512 KiB of L1; gate_up_silu holds both and the activation."""
    module = plant()
    where = place(module, "wg = pl.slice(w_gate,")
    message = (
        r"region 'gate_up_silu' needs 540672 bytes of Mat \('wg' \[512, 256\] BF16: 262144 bytes\), "
        r"a2a3 has 524288"
    )
    with pytest.raises(UserError, match=rf"{where}.*{message}") as caught:
        full_size(module.dense_layer, changed={"K_TILE": 512})
    assert caught.value.diag is Diag.BUDGET


def test_pages_of_256_tokens_fit() -> None:
    """A K or V tile then fills all of L0B; cut along the contraction, two pieces alternate there."""
    compiled = full_size(dense_layer.dense_layer, changed={"PAGE": 256})
    (planned,) = (r for r in compiled.plan.regions if r.name == "fa_fused")
    assert planned.spaces[Mem.Right].limit == 256 * 128 * 2
    assert planned.spaces[Mem.Right].peak == 256 * 128 * 2 // 2


SPLIT = "optimizations=[pl.split(pl.SplitMode.UP_DOWN)]"
UNSPLIT_BYTES = {  # of Vec for each element of a tile: a ring of two fp32 slots, and what is live beside it
    "out_proj": 2 * 4 + 2 + 4,  # the residual in bf16 and in fp32
    "gate_up_silu": 2 * 4 + 4 + 4,  # operand and result of recip, which does not work in place
    "down_proj": 2 * 4 + 4,  # the residual
}


def vec_peak(compiled: Compiled, region: str) -> int:
    (planned,) = (r for r in compiled.plan.regions if r.name == region)
    return planned.spaces[Mem.Vec].peak


def unsplit(plant: Planter, region: str, more: str = "") -> ModuleType:
    return plant((f'name_hint="{region}", {SPLIT}', f'name_hint="{region}"{more}'))


@pytest.mark.parametrize("region", UNSPLIT_BYTES)
def test_wide_tiles_fit_only_with_up_down(plant: Planter, region: str) -> None:
    """Tiles [16, 1024] need more than the 184 KiB of a vector lane, and half of that if rows are divided."""
    wide = {"N_TILE": 1024, "K_TILE": 64}
    need = UNSPLIT_BYTES[region] * 16 * 1024
    fits = {
        r.name: r.spaces[Mem.Vec]
        for r in full_size(dense_layer.dense_layer, changed=wide).plan.regions
        if Mem.Vec in r.spaces
    }
    assert (fits[region].peak, fits[region].limit) == (need // 2, 188416)
    message = (
        rf"region '{region}' needs {need} bytes of Vec \('ring of .*' \[16, 1024\] FP32 x 2: 131072 bytes\), "
        rf"a2a3 has 188416(.|\n)*fix: use optimizations=\[pl\.split\(pl\.SplitMode\.UP_DOWN\)\]: "
        rf"each vector lane then needs {need // 2} bytes"
    )
    with pytest.raises(UserError, match=message) as caught:
        full_size(unsplit(plant, region).dense_layer, changed=wide)
    assert caught.value.diag is Diag.BUDGET
    assert Path(caught.value.span.file).name == "planted.py"


@pytest.mark.parametrize("slots", [2, 8])
@pytest.mark.parametrize("region", UNSPLIT_BYTES)
def test_the_tiles_of_the_layer_fit_with_and_without_up_down(plant: Planter, region: str, slots: int) -> None:
    """At [16, 256] no region needs the split, even with a ring of 8 slots.

    8 were the default when the layer was written, and the lanes of an unsplit region had tiles of their own,
    so that the split was needed; both have changed since (pypto pull requests 2378 and 1554).
    """
    more = f", optimizations=[pl.cross_core_slot(slot_num={slots})]"
    compiled = full_size(unsplit(plant, region, more).dense_layer)
    assert vec_peak(compiled, region) == (UNSPLIT_BYTES[region] + (slots - 2) * 4) * 16 * 256
