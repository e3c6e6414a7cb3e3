"""Steps inside of a region that move elements: valid rectangles, extents, parts of tiles, single elements.

What moves elements across the axis that two lanes share has no place in a region that is split.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .blocks import Blocks
from .body import PADS, Body, dtype_name, pad_number
from .facts import Facts
from .steps import (
    argmax,
    binary,
    compare,
    convert,
    expand,
    load,
    math_unary,
    reduce,
    reduce_to,
    simple_unary,
    with_number,
)
from .writer import BF16, F32, I32, Env, Tile

Step = Callable[[Body], bool]


# ------------------------------------------------------------------------------------------ valid rectangles
def fillpad(b: Body) -> bool:
    t = b.some(lambda t: not t.full) or b.some()
    if t is None:
        return False
    pad = b.w.pick(("zero", "zero", "min", "max")) if not t.is_float else "zero"
    extra = (
        b.w.pick(("", ", pad_value=pl.PadValue.zero", ", pad_value=0"))
        if pad == "zero"
        else f", pad_value={PADS[pad][0]}"
    )
    facts = t.facts if pad == "zero" else t.facts.join(Facts(abs(pad_number(pad, t.dtype)), 0.0, 0))
    _filled(b, t, f"pl.fillpad({t.name}{extra})", pad_number(pad, t.dtype), facts)
    return True


def _filled(b: Body, t: Tile, text: str, value: float, facts: Facts) -> Tile:
    name = b.name()
    b.w.line(f"{name} = {text}")
    whole = (None,) * len(t.shape)
    return b.tile(
        name, t.shape, t.dtype, facts, whole, lambda env: Blocks(t.at(env, b.context).filled(value), whole)
    )


def padded_max(b: Body) -> bool:
    """The idiom of a masked softmax: shrink, fill with the least number, take the row's maximum, subtract."""
    t = b.some(lambda t: t.dtype == F32 and len(t.shape) == 2 and t.shape[1] > 1)
    if t is None or b.split == 1:
        return False
    lowest = torch.finfo(t.dtype).min
    filled = _filled(b, t, f"pl.fillpad({t.name}, pad_value=pl.PadValue.min)", lowest, t.facts)
    top = reduce_to(b, filled, "row_max", 1)
    b.tiles.remove(filled)
    if t.valid[0] is not None:  # rows that are all padding hold the least number
        b.tiles.remove(top)
        return True
    facts = Facts(2 * t.facts.bound, 2 * t.facts.tol, t.facts.grain)
    b.emit(
        f"pl.row_expand_sub({t.name}, {top.name})", t, lambda env: b.data(env, t) - b.data(env, top), facts
    )
    return True


def set_valid(b: Body) -> bool:
    t = b.some(lambda t: len(t.shape) == 2 and t.full)
    if t is None:
        return False
    sizes = [b.w.const(max(1, d - b.w.choose(d))) if b.w.chance(70) else b.w.const(d) for d in t.shape]
    name = b.name()
    b.w.line(f"{name} = pl.set_validshape({t.name}, {sizes[0].text}, {sizes[1].text})")
    valid = tuple(None if s.constant == d else s for s, d in zip(sizes, t.shape, strict=True))

    def fn(env: Env) -> Blocks:
        data = b.data(env, t)
        live = tuple(None if v is None else v.at(env, b.context).expand(len(data)) for v in valid)
        cut = Blocks(data, live)
        return Blocks(cut.filled(float("nan")), live) if t.is_float else cut

    t.frozen = True
    b.tile(name, t.shape, t.dtype, t.facts, valid, fn)
    return True


# ------------------------------------------------------------------------------------------ layout
def reshape(b: Body) -> bool:
    t = b.some(lambda t: t.full and len(t.shape) == 2)
    if t is None or b.split == 1:
        return False
    r, c = t.shape
    shapes = [(r * c, 1), (1, r * c), (c, r)]
    shapes += [(r // 2, c * 2)] * (r % 2 == 0) + [(r * 2, c // 2)] * (c % 2 == 0)
    if b.split == 0:  # the first half of the elements is the first half of the rows, before and after
        shapes = [x for x in shapes if x[0] % 2 == r % 2 == 0]
    if not shapes:
        return False
    shape = b.w.pick(shapes)
    if b.w.wild and b.split is None and b.w.chance(30):  # through three axes
        t = _reshaped(b, t, (1, *shape))
        b.tiles.remove(t)
    _reshaped(b, t, shape)
    return True


def _reshaped(b: Body, t: Tile, shape: tuple[int, ...]) -> Tile:
    name, whole = b.name(), (None,) * len(shape)
    b.w.line(f"{name} = pl.reshape({t.name}, {list(shape)})")
    t.frozen = True
    fn = lambda env: Blocks(b.data(env, t).reshape(-1, *shape), whole)  # noqa: E731
    return b.tile(name, shape, t.dtype, t.facts, whole, fn)


def transpose(b: Body) -> bool:
    t = b.some(lambda t: len(t.shape) == 2)
    if t is None or b.split is not None:
        return False
    name = b.name()
    b.w.line(f"{name} = pl.transpose({t.name}, {b.w.pick(('0, 1', '1, 0', '-2, -1'))})")

    def fn(env: Env) -> Blocks:
        x = t.at(env, b.context)
        return Blocks(x.data.transpose(1, 2), x.valid[::-1])

    b.tile(name, t.shape[::-1], t.dtype, t.facts, t.valid[::-1], fn)
    return True


def move(b: Body) -> bool:
    t = b.some(lambda t: not t.frozen)
    if t is None:
        return False
    space = b.w.pick(("pl.Mem.Vec", "pl.MemorySpace.Vec"))
    t.frozen = True
    b.emit(f"pl.move({t.name}, target_memory={space})", t, lambda env: b.data(env, t), t.facts)
    return True


def extract(b: Body) -> bool:
    t = b.some(lambda t: t.full and len(t.shape) == 2)
    if t is None:
        return False
    quarters = [1 if d == 1 or b.split == a else b.w.pick((1, 2)) for a, d in enumerate(t.shape)]
    shape = [d // q if d % q == 0 else d for d, q in zip(t.shape, quarters, strict=True)]
    at = [b.w.choose(d // s) * s for d, s in zip(t.shape, shape, strict=True)]
    if b.w.wild and b.split is None:
        shape = [max(1, s - b.w.choose(s)) for s in shape]
    name = b.name()
    if b.w.chance(40):
        w0, w1 = (f"{o} : {o + s}" for o, s in zip(at, shape, strict=True))
        b.w.line(f"{name} = {t.name}[{w0}, {w1}]")
    else:
        b.w.line(f"{name} = pl.slice({t.name}, {shape}, {at})")
    box = (slice(None), *(slice(o, o + s) for o, s in zip(at, shape, strict=True)))
    t.frozen = True
    b.tile(name, shape, t.dtype, t.facts, (None, None), lambda env: Blocks(b.data(env, t)[box], (None, None)))
    return True


# ------------------------------------------------------------------------------------------ making tiles
def full(b: Body) -> bool:
    p = b.place
    shape = b.w.pick(((p.tm, p.tn), (p.tm, 1), (1, p.tn)))
    dtype = b.w.pick((F32, BF16, I32))
    value = b.w.pick((0, 1, -2)) if not dtype.is_floating_point else b.w.pick((0.0, 1.5, -0.25))
    make_full(b, shape, dtype, value)
    return True


def make_full(b: Body, shape: tuple[int, ...], dtype: torch.dtype, value: float) -> Tile:
    name = b.name()
    keywords = b.w.chance(50)
    arguments = f"dtype={dtype_name(dtype)}, value={value}" if keywords else f"{dtype_name(dtype)}, {value}"
    b.w.line(f"{name} = pl.full({list(shape)}, {arguments})")
    whole = (None,) * len(shape)

    def fn(env: Env) -> Blocks:
        return Blocks(torch.full((b.context.blocks(env), *shape), value, dtype=dtype), whole)

    return b.tile(name, shape, dtype, Facts(abs(value), 0.0, 2 if dtype.is_floating_point else 0), whole, fn)


def fresh_target(b: Body) -> Tile:
    """A tile that may be changed in place."""
    p = b.place
    return make_full(b, (p.tm, p.tn), b.w.pick((F32, BF16, I32)), 1)


def replaced(b: Body, old: Tile, facts: Facts, fn: Callable[[Env], Blocks]) -> Tile:
    """The tile under its old name, after a change in place."""
    b.tiles.remove(old)
    return b.tile(old.name, old.shape, old.dtype, facts, old.valid, fn)


def insert(b: Body) -> bool:
    """Part of a tile written into another, in place; in a split region the whole of it."""
    target = fresh_target(b) if b.split is None else b.some(lambda t: b.changeable(t) and len(t.shape) == 2)
    if target is None:
        return False
    old: Tile = target

    def fits(s: Tile) -> bool:
        if s is old or not s.full or len(s.shape) != 2 or s.dtype != old.dtype:
            return False
        return s.shape == old.shape or (
            b.split is None and s.shape[0] <= old.shape[0] and s.shape[1] <= old.shape[1]
        )

    part = b.some(fits)
    if part is None:
        return False
    source: Tile = part
    at = [b.w.choose(d - s + 1) for d, s in zip(old.shape, source.shape, strict=True)]
    if b.w.chance(40):
        parts = ", ".join(f"{o} : {o + s}" for o, s in zip(at, source.shape, strict=True))
        b.w.line(f"{old.name}[{parts}] = {source.name}")
    else:
        rebind = f"{old.name} = " if b.w.chance(50) else ""
        b.w.line(f"{rebind}pl.assemble({old.name}, {source.name}, {at})")
    box = (slice(None), *(slice(o, o + s) for o, s in zip(at, source.shape, strict=True)))

    def fn(env: Env) -> Blocks:
        data = b.data(env, old).clone()
        data[box] = b.data(env, source)
        return Blocks(data, (None, None))

    replaced(b, old, old.facts.join(source.facts), fn)
    return True


def assembled(b: Body) -> bool:
    """A tile without a value, put together from two halves."""
    if b.split is not None:
        return False
    half = b.some(lambda t: t.full and len(t.shape) == 2)
    other = half and b.some(lambda t: t.full and t.shape == half.shape and t.dtype == half.dtype)
    if half is None or not other:
        return False
    r, c = half.shape
    axis = b.w.choose(2)
    shape = (r, 2 * c) if axis else (2 * r, c)
    name = b.name()
    b.w.line(f"{name} = pl.create_tensor({list(shape)}, dtype={dtype_name(half.dtype)})")
    second = [0, c] if axis else [r, 0]
    b.w.line(f"pl.assemble({name}, {half.name}, [0, 0])")
    b.w.line(f"{name} = pl.assemble({name}, {other.name}, {second})")
    first, rest = half, other
    fn = lambda env: Blocks(torch.cat([b.data(env, first), b.data(env, rest)], axis + 1), (None, None))  # noqa: E731
    b.tile(name, shape, half.dtype, half.facts.join(other.facts), (None, None), fn)
    return True


# ------------------------------------------------------------------------------------------ elements
def read_element(b: Body) -> bool:
    """One element of a tile as a scalar, and arithmetic with it."""
    t = b.some(lambda t: t.full and t.facts.exact and t.facts.bound <= 64)
    if t is None or b.split is not None:
        return False
    x = b.some(lambda x: x.is_float == t.is_float and x.facts.bound <= 64 and x.shape != (1, 1))
    if x is None:
        return False
    at = [b.w.choose(d) for d in t.shape]
    name = b.w.fresh("s")
    text = ", ".join(map(str, at))
    form = b.w.pick(
        (f"pl.read({t.name}, [{text}])", f"{t.name}[{text}]", f"pl.tile.read({t.name}, [{text}])")
    )
    b.w.line(f"{name} = {form}")

    def fn(env: Env) -> Tensor:
        data = b.data(env, x)
        value = b.data(env, t)[tuple([slice(None), *at])].reshape(-1, *[1] * len(x.shape))
        wide = data.float() if x.is_float else data
        return (wide + value.to(wide.dtype)).to(x.dtype)

    b.emit(f"pl.add({x.name}, {name})", x, fn, x.facts.plus(t.facts))
    return True


def write_element(b: Body) -> bool:
    t = b.some(b.changeable)
    if t is None or b.split is not None:
        return False
    at = [b.w.choose(d) for d in t.shape]
    value = b.w.pick((3, -1))
    text = ", ".join(map(str, at))
    number = repr(float(value)) if t.is_float else repr(value)
    b.w.line(b.w.pick((f"pl.write({t.name}, [{text}], {number})", f"{t.name}[{text}] = {number}")))
    old = t

    def fn(env: Env) -> Blocks:
        data = b.data(env, old).clone()
        data[tuple([slice(None), *at])] = value
        return Blocks(data, (None,) * len(old.shape))

    replaced(b, old, old.facts.join(Facts(3.0, 0.0, 0)), fn)
    return True


def read_number(b: Body) -> bool:
    """A scalar from a tensor in global memory, per block or for all."""
    x = b.some(lambda x: x.is_float and x.facts.bound <= 64)
    if x is None:
        return False
    m = b.source("row", 32, (F32,))
    if not m.facts.exact:
        return False
    at = b.w.choose(32)
    name = b.w.fresh("s")
    b.w.line(
        f"{name} = "
        + b.w.pick(
            (f"pl.read({m.name}, [0, {at}])", f"pl.tensor.read({m.name}, [0, {at}])", f"{m.name}[0, {at}]")
        )
    )
    fn = lambda env: (b.data(env, x).float() * env.memory[m.name][0, at].float()).to(x.dtype)  # noqa: E731
    b.emit(
        f"{name} * {x.name}" if b.w.chance(40) else f"pl.mul({x.name}, {name})", x, fn, x.facts.times(m.facts)
    )
    return True


STEPS: dict[Step, int] = {
    binary: 8, load: 6, simple_unary: 4, with_number: 5, math_unary: 8, expand: 16, reduce: 8, convert: 6,
    argmax: 3, fillpad: 3, set_valid: 3, compare: 3, reshape: 4, transpose: 4, move: 3, extract: 4, full: 3,
    insert: 4, assembled: 3, read_element: 3, write_element: 3, read_number: 3, padded_max: 3,
}  # fmt: skip
