"""Global memory of the simulator: the record of written elements, views, poison."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pypto_models.language as pl
from backends.sim import simulate
from backends.sim.memory import Buffer, create, poison, show_box
from pypto_models.errors import UserError
from pypto_models.language import lower

SHAPE = (5, 7)
_ROWS = st.tuples(st.integers(0, 4), st.integers(1, 5)).map(lambda p: (p[0], min(p[1], SHAPE[0] - p[0])))
_COLS = st.tuples(st.integers(0, 6), st.integers(1, 7)).map(lambda p: (p[0], min(p[1], SHAPE[1] - p[0])))
BOX = st.tuples(_ROWS, _COLS)


@given(st.lists(st.tuples(st.booleans(), BOX), max_size=40))
def test_a_load_succeeds_exactly_where_all_elements_were_written(accesses: list) -> None:
    """Against a plain mask that is never dropped."""
    view = create("scratch", SHAPE, torch.float32, None)
    mask, data = torch.zeros(SHAPE, dtype=torch.bool), torch.zeros(SHAPE)
    for step, (is_store, ((row, rows), (col, cols))) in enumerate(accesses):
        box = slice(row, row + rows), slice(col, col + cols)
        if is_store:
            view.store((row, col), torch.full((rows, cols), float(step)), False)
            mask[box], data[box] = True, float(step)
        elif mask[box].all():
            assert torch.equal(view.load((row, col), (rows, cols)), data[box])
        else:
            hole = (~mask[box]).nonzero()[0] + torch.tensor([row, col])
            want = rf"scratch\[{hole[0]}, {hole[1]}\], which was never written"
            with pytest.raises(UserError, match=want):
                view.load((row, col), (rows, cols))


def test_the_record_is_dropped_once_all_is_written() -> None:
    view = create("scratch", (64, 64), torch.float32, None)
    for row in range(64):
        assert not view.buffer.complete
        view.store((row, 0), torch.ones(1, 64), False)
    assert view.buffer.complete


def test_a_hole_seen_through_views_is_named_in_the_tensor() -> None:
    view = create("scratch", (6, 8), torch.float32, None)
    view.store((0, 0), torch.ones(5, 8), False)
    flat = view.view((2, 0), (4, 8)).reshape((32,))
    assert torch.equal(flat.load((0,), (24,)), torch.ones(24))
    with pytest.raises(UserError, match=r"scratch\[5, 1\], which was never written"):
        flat.load((25,), (2,))


def test_outside_of_a_reshaped_view_names_the_tensor() -> None:
    view = Buffer("x", torch.zeros(4, 8), defined=True).view().reshape((32,))
    message = r"a view of x\[30:34\] outside of its extents \[32\](.|\n)*starts at x\[3, 6\]"
    with pytest.raises(UserError, match=message):
        view.load((30,), (4,))
    with pytest.raises(UserError, match=r"\[32\] does not have the elements of \[3, 11\]"):
        view.reshape((3, 11))


def test_a_buffer_inside_of_a_larger_storage() -> None:
    storage = torch.arange(40.0)
    view = Buffer("x", storage[8:32].view(4, 6), defined=False).view()
    assert storage[8:32].isnan().all()
    assert torch.equal(storage[:8], torch.arange(8.0))
    view.view((1, 0), (2, 6)).store((1, 2), torch.full((1, 2), 3.0), False)
    assert storage[8 + 14 : 8 + 16].tolist() == [3.0, 3.0]
    assert torch.equal(view.load((2, 2), (1, 2)), torch.full((1, 2), 3.0))
    with pytest.raises(UserError, match=r"x\[2, 1\], which was never written"):
        view.load((2, 1), (1, 2))


def test_stable_memory_is_not_copied_and_other_memory_is() -> None:
    data = torch.zeros(4, 8)
    stable = Buffer("w", data, defined=True, stable=True).view().load((0, 0), (2, 8))
    copied = Buffer("x", data, defined=True).view().load((0, 0), (2, 8))
    data.fill_(1.0)
    assert torch.equal(stable, torch.ones(2, 8))
    assert torch.equal(copied, torch.zeros(2, 8))


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_float_poison_is_nan(dtype: torch.dtype) -> None:
    data = torch.zeros(4, dtype=dtype)
    poison(data)
    assert data.float().isnan().all()


def test_integer_poison_is_the_extreme_of_the_type() -> None:
    for dtype, want in ((torch.int32, -(2**31)), (torch.uint8, 255), (torch.bool, True)):
        data = torch.zeros(2, dtype=dtype)
        poison(data)
        assert data.tolist() == [want, want]


def test_scratch_extents_and_initial_value() -> None:
    assert create("s", (2, 3), torch.bfloat16, 1.5).load((0, 0), (2, 3)).tolist() == [[1.5] * 3] * 2
    with pytest.raises(UserError, match=r"s would be \[-1, 3\]"):
        create("s", (-1, 3), torch.float32, None)


def test_boxes_read_as_slices() -> None:
    assert show_box((3, 0), (1, 256)) == "[3, 0:256]"


PAGES = pl.dynamic("PAGES")


@pl.jit
def last_page(cache: pl.InOut[pl.Tensor[[PAGES, 256], pl.BF16]], out: pl.Out[pl.Tensor[[1, 256], pl.BF16]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        row = pl.tensor.dim(cache, 0) - 1
        pl.assemble(cache, pl.full([1, 256], pl.BF16, 2.0), [row, 0])
    with pl.at(level=pl.Level.CORE_GROUP):
        pl.assemble(out, pl.slice(cache, [1, 256], [pl.tensor.dim(cache, 0) - 1, 0]), [0, 0])


def test_offsets_beyond_32_bits() -> None:
    """A cache of more than 2^32 bytes and 2^31 elements, of which one row is ever touched."""
    rows = 2**23 + 1
    cache, out = torch.empty(rows, 256, dtype=torch.bfloat16), torch.empty(1, 256, dtype=torch.bfloat16)
    assert (rows - 1) * 256 * 2 >= 2**32 and cache.numel() > 2**31
    simulate(lower(last_page), {"cache": cache, "out": out})
    assert torch.equal(out, torch.full((1, 256), 2.0, dtype=torch.bfloat16))
    assert float(cache[-1, -1]) == 2.0
