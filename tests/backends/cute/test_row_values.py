"""What follows from a row's statistic: worked out once a row, with a barrier for statistics side by side."""

from __future__ import annotations

import numpy as np
import pytest

import pypto_models.language as pl
from backends.gpu.module import KernelSource

from . import lockstep
from .support import module_of

BARRIER = "cute.arch.sync_threads()"
BLOCKS, ROWS, WIDTH = 3, 5, 64
TWICE = 0  # 1: the mean has a second reader
FIRST = 0  # 1: the second statistic takes what the first has left
LIVE = 0  # 1: only the rows that are there are live, and what follows from the second statistic is filled up


@pl.jit
def scores(
    x: pl.Tensor[[BLOCKS * ROWS, WIDTH], pl.FP32],
    w: pl.Tensor[[BLOCKS * ROWS, WIDTH], pl.FP32],
    y: pl.Out[pl.Tensor[[BLOCKS * ROWS, ROWS], pl.FP32]],
    z: pl.Out[pl.Tensor[[BLOCKS * 16, 1], pl.FP32]],
):
    """y = a b^T for each block's rows a = x / rms(x) and b = w max(w) / 4; z = max(w) / 4, 0 elsewhere."""
    for n in pl.spmd(BLOCKS, name_hint="scores"):
        at = [n * ROWS, 0]
        a = pl.fillpad(pl.slice(x, [16, WIDTH], at, valid_shape=[ROWS, WIDTH]))
        b = pl.slice(w, [16, WIDTH], at, valid_shape=[ROWS, WIDTH])
        if LIVE == 0:
            b = pl.fillpad(b)
        mean = pl.add(pl.mul(pl.row_sum(pl.mul(a, a)), 1.0 / WIDTH), 1e-3)
        scale = pl.rsqrt(mean)
        if TWICE > 0:
            scale = pl.mul(scale, pl.mul(mean, pl.recip(mean)))
        if FIRST > 0:
            b = pl.mul(pl.row_expand_mul(b, scale), 1.0)
        top = pl.mul(pl.row_max(b), 0.25)
        if LIVE > 0:
            top = pl.fillpad(top)
            b = pl.fillpad(b)
        product = pl.matmul(pl.row_expand_mul(a, scale), pl.row_expand_mul(b, top), b_trans=True)
        pl.assemble(y, pl.set_validshape(product, ROWS, ROWS), at)
        pl.assemble(z, top, [n * 16, 0])


def kernel_of(**constants: object) -> KernelSource:
    (found,) = module_of(scores, **constants).kernels
    return found


def body_of(kernel: KernelSource) -> str:
    return kernel.text.split("@cute.jit\ndef launch_")[0]


def behind_sum(text: str) -> str:
    """From the end of a row's sum to the next barrier."""
    return text[text.index("block.warp_sum(") :].split(BARRIER)[0]


def test_a_row_s_root_is_taken_by_the_thread_that_has_its_sum() -> None:
    text = body_of(kernel_of())
    assert text.count("sqrt(") == text.count("Float32(0.25)") == 1
    stored = behind_sum(text).split("if lane == 0:")[1]
    assert stored.index("sqrt(") < stored.index("block.element(scale_tile")


def test_the_mean_is_left_where_it_has_two_readers() -> None:
    text = behind_sum(body_of(kernel_of(TWICE=1)))
    assert "block.element(mean_tile" in text or "block.element(add_tile" in text
    assert "sqrt(" not in text


@pytest.mark.parametrize("first", [0, 1])
def test_statistics_meet_at_one_barrier_unless_one_takes_the_other(first: int) -> None:
    text = body_of(kernel_of(FIRST=first))
    between = text[text.index("block.warp_sum(") : text.index("block.warp_max(")]
    assert (BARRIER in between) == bool(first)
    assert BARRIER in text[text.index("block.warp_max(") :]


@pytest.mark.parametrize(("twice", "first", "live"), [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_the_values(twice: int, first: int, live: int) -> None:
    """With `live` the rows beyond are no part of a statistic, and filled behind it."""
    kernel = kernel_of(TWICE=twice, FIRST=first, LIVE=live)
    random = np.random.default_rng(2)
    x, w = (random.standard_normal((BLOCKS, ROWS, WIDTH)).astype(np.float32) for _ in range(2))
    y = np.full(BLOCKS * ROWS * ROWS, np.nan, np.float32)
    z = np.full(BLOCKS * 16, np.nan, np.float32)
    given = {"x": x.ravel(), "w": w.ravel(), "y": y, "z": z}
    lockstep.run(body_of(kernel), kernel.name, BLOCKS, *(given[n] for n, _ in kernel.parameters))
    a, b = x.astype(np.float64), w.astype(np.float64)
    scale = 1 / np.sqrt((a * a).mean(-1, keepdims=True) + 1e-3)
    b = b * scale if first else b
    top = b.max(-1, keepdims=True) / 4
    expected = (a * scale) @ (b * top).transpose(0, 2, 1)
    assert np.abs(z.reshape(BLOCKS, 16)[:, :ROWS] - top[:, :, 0]).max() < 1e-5
    assert not z.reshape(BLOCKS, 16)[:, ROWS:].any()
    assert np.abs(y.reshape(expected.shape) - expected).max() < 1e-4
