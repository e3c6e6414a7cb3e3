"""Steps inside of a region, without control flow: each writes one op (or a few) and the same in torch.

A step returns False if it has nothing to work on; the body then loads something.  ``split`` rules are those of
the language: an op that moves elements across the halved axis has no place in such a region.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .blocks import Blocks, cast, computed
from .body import PADS, Body, dtype_name, pad_number
from .facts import Facts
from .writer import BF16, F16, F32, I8, I32, Env, Tile

Step = Callable[[Body], bool]
FLOATS = (F32, BF16, F16)


def load(b: Body) -> bool:
    b.home((F32, BF16, F32, I32, F16, I8, torch.int16) if b.w.wild else (F32, BF16, F32, I32, F16))
    return True


# ------------------------------------------------------------------------------------------ elementwise
def _call(b: Body, name: str, *operands: str) -> str:
    """``pl.name(...)``, in one of its spellings."""
    symbol = {"add": "+", "sub": "-", "mul": "*", "div": "/"}.get(name)
    if symbol and b.w.chance(20):
        return f"{operands[0]} {symbol} {operands[1]}"
    if name in ("neg", "abs") and b.w.chance(25):
        return f"-{operands[0]}" if name == "neg" else f"abs({operands[0]})"
    return f"pl.{b.w.pick(('', '', 'tensor.', 'tile.'))}{name}({', '.join(operands)})"


def simple_unary(b: Body) -> bool:
    t = b.some()
    if t is None:
        return False
    name = b.w.pick(("neg", "abs"))
    fn = {"neg": torch.neg, "abs": torch.abs}[name]
    b.emit(_call(b, name, t.name), t, lambda env: fn(b.data(env, t)), t.facts)
    return True


def _positive(b: Body, t: Tile, at_least: float = 1.0) -> Tile:
    """abs(t) + 1: never near zero."""
    grain = None if t.facts.grain is None else max(t.facts.grain, 0)
    facts = Facts(t.facts.bound + at_least, t.facts.tol, grain)
    number = repr(at_least) if t.is_float else repr(int(at_least))
    return b.emit(
        f"pl.add(pl.abs({t.name}), {number})", t,
        lambda env: computed(lambda x: x + float(number) if t.is_float else x + int(number), b.data(env, t).abs()), facts,
    )  # fmt: skip


def math_unary(b: Body) -> bool:
    t = b.some(lambda t: t.is_float)
    if t is None:
        return False
    name = b.w.pick(("exp", "sqrt", "log", "rsqrt", "recip"))
    fn = {
        "exp": torch.exp,
        "sqrt": torch.sqrt,
        "log": torch.log,
        "rsqrt": torch.rsqrt,
        "recip": torch.reciprocal,
    }[name]
    if name == "exp":
        t = b.small(t, 4.0)
        bound = 2.718281828 ** (t.facts.bound + t.facts.tol) * 1.01
        facts = Facts(bound, t.facts.tol * bound).approximate()
    else:
        t = _positive(b, b.small(t))
        bound = {"log": t.facts.bound, "sqrt": t.facts.bound}.get(name, 1.01)
        facts = Facts(bound, t.facts.tol)
        if name in ("log", "rsqrt"):
            facts = facts.approximate()
    text = (
        f"pl.rsqrt({t.name}, high_precision=True)"
        if name == "rsqrt" and b.w.chance(30)
        else f"pl.{name}({t.name})"
    )
    b.emit(text, t, lambda env: computed(fn, b.data(env, t)), facts)
    return True


_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "maximum": torch.maximum, "minimum": torch.minimum,
    "div": lambda x, y: x / y if x.is_floating_point() else torch.div(x, y, rounding_mode="trunc"),
}  # fmt: skip


def _binary_facts(name: str, x: Facts, y: Facts) -> Facts:
    if name in ("add", "sub"):
        return x.plus(y)
    if name == "mul":
        return x.times(y)
    if name == "div":  # the divisor is at least 1 in magnitude
        return Facts(x.bound, x.tol + x.bound * y.tol)
    return x.join(y)


def _promoted(a: Tile, b: Tile) -> torch.dtype:
    return torch.promote_types(a.dtype, b.dtype)


def binary(b: Body) -> bool:
    name = b.w.pick(tuple(_BINARY))
    x = b.some()
    if x is None:
        return False
    y = b.partner(x)
    if y is None:
        return False
    x, y = b.small(x), b.small(y)
    if name == "div":
        y = _positive(b, y)
    facts = _binary_facts(name, x.facts, y.facts)
    fn = lambda env: computed(_BINARY[name], b.data(env, x), b.data(env, y))  # noqa: E731
    b.emit(_call(b, name, x.name, y.name), x, fn, facts, _promoted(x, y))
    return True


def with_number(b: Body) -> bool:
    """A tile and a scalar: a constant, or a number that is known at run time."""
    x = b.some()
    if x is None:
        return False
    x = b.small(x)
    name = b.w.pick(tuple(_BINARY))
    text, value = b.number(x)
    if name == "div":
        value = abs(value) if abs(value) >= 1 else 2.0
        text = repr(value)
    facts = _binary_facts(name, x.facts, Facts(abs(value), 0.0, 2 if x.is_float else 0))

    def fn(env: Env) -> Tensor:
        data = b.data(env, x)
        wide = data.float() if x.is_float else data
        return _BINARY[name](wide, torch.full_like(wide, value)).to(x.dtype)

    b.emit(_call(b, name, x.name, text), x, fn, facts)
    return True


def compare(b: Body) -> bool:
    x = b.some(lambda t: t.facts.exact)
    if x is None:
        return False
    code = b.w.choose(6)
    fn = (torch.eq, torch.ne, torch.lt, torch.le, torch.gt, torch.ge)[code]
    y = b.partner(x, lambda t: t.facts.exact) if b.w.chance(50) else None
    keyword = b.w.pick((f"cmp_type={code}", str(code)))
    if y is None:
        text = f"pl.cmp({x.name}, 1, {keyword})"
        b.emit(text, x, lambda env: fn(b.data(env, x), 1).to(x.dtype), Facts(1.0, 0.0, 0))
    else:
        text = f"pl.cmp({x.name}, {y.name}, {keyword})"
        data = lambda env: fn(b.data(env, x).to(_promoted(x, y)), b.data(env, y).to(_promoted(x, y))).to(
            x.dtype
        )  # noqa: E731
        b.emit(text, x, data, Facts(1.0, 0.0, 0))
    return True


MODES = ("rint", "round", "none", "floor", "ceil", "trunc", "odd")


def convert(b: Body) -> bool:
    x = b.some()
    if x is None:
        return False
    to = b.w.pick((BF16, F32, F16, I32, I8) if b.w.wild else (BF16, F32, F16, I32))
    x = b.small(x)
    if not to.is_floating_point and not x.facts.exact:  # a boundary is no place for an inexact value
        to = F32
    if not x.is_float and to.is_floating_point and (to != F32 or x.facts.bound > 2**23):
        to = I32
    mode = b.w.pick(MODES)
    steps = to == BF16 and x.dtype == F32 or not to.is_floating_point
    if not steps and mode not in ("rint", "none"):
        mode = "rint"
    number = MODES_BY_NUMBER.index(mode)
    shown = b.w.pick((f'mode="{mode}"', f"mode={number}")) if mode != "round" or b.w.chance(50) else ""
    arguments = [x.name, dtype_name(to)] + ([shown] if shown else [])
    if b.w.chance(20):
        arguments[1] = f"target_type={arguments[1]}"
    facts = x.facts
    if to.is_floating_point:
        if (
            mode not in ("rint", "none", "round") and facts.tol
        ):  # a directed rounding may fall a whole step off
            facts = Facts(facts.bound, facts.tol + facts.bound * 2.0**-7)
    else:
        facts = Facts(facts.bound + 1, 0.0, 0)
    if facts.tol == 0 and to.is_floating_point and x.is_float:
        facts = Facts(facts.bound * 1.01, 0.0, facts.grain)
    b.emit(f"pl.cast({', '.join(arguments)})", x, lambda env: cast(b.data(env, x), to, mode), facts, to)
    return True


MODES_BY_NUMBER = ("none", "rint", "round", "floor", "ceil", "trunc", "odd")


# ------------------------------------------------------------------------------------------ broadcasts
def vector(b: Body, t: Tile, along_rows: bool) -> Tile | None:
    """A column [M, 1] or a row [1, N] for ``t``: one in scope, or a load."""
    shape = (t.shape[0], 1) if along_rows else (1, t.shape[1])
    axis = 0 if along_rows else 1

    def fits(o: Tile) -> bool:
        covered = o.valid[axis] is None or o.valid[axis] is t.valid[axis]
        return o.shape == shape and covered and o.is_float == t.is_float and {o.dtype, t.dtype} != {BF16, F16}

    found = b.some(fits)
    if found is not None and (b.w.chance(60) or not t.home):
        return found if found.is_float or found.dtype == t.dtype else None
    if not t.home or not t.is_float:
        return None
    p = b.place
    if along_rows:
        m = b.source("rows", 1, (F32,))
        return b.load(
            m, (p.tm, 1), (p.r0, b.w.const(0)), (p.vr, None), (b.layout.rows, b.w.const(1)), plain=True
        )
    m = b.source("row", p.n, (F32,))
    return b.load(
        m, (1, p.tn), (b.w.const(0), p.c0), (None, p.vc), (b.w.const(1), b.w.const(p.n)), plain=True
    )


def expand(b: Body) -> bool:
    t = b.some(lambda t: len(t.shape) == 2 and t.shape[0] > 1 and t.shape[1] > 1)
    if t is None:
        return False
    along_rows = b.w.chance(50)
    v = vector(b, t, along_rows)
    if v is None:
        return False
    t, v = b.small(t), b.small(v)
    name = b.w.pick(("mul", "add", "sub", "div"))
    if name == "div":
        v = _positive(b, v)
    facts = _binary_facts(name, t.facts, v.facts)
    fn = lambda env: computed(_BINARY[name], b.data(env, t), b.data(env, v))  # noqa: E731
    b.emit(
        f"pl.{'row' if along_rows else 'col'}_expand_{name}({t.name}, {v.name})",
        t,
        fn,
        facts,
        _promoted(t, v),
    )
    return True


def reduce(b: Body) -> bool:
    t = b.some(lambda t: t.is_float and len(t.shape) == 2)
    if t is None:
        return False
    name = b.w.pick(("row_sum", "row_max", "row_min", "col_sum", "col_max", "col_min"))
    axis = 1 if name.startswith("row") else 0
    if b.split == axis and t.shape[axis] > 1:
        axis = 1 - axis
        name = ("row_" if axis == 1 else "col_") + name[4:]
    if b.split == axis and t.shape[axis] > 1:
        return False
    t = b.small(t)
    reduce_to(b, t, name, axis)
    return True


def reduce_to(b: Body, t: Tile, name: str, axis: int) -> Tile:
    kind = name[4:]
    shape = (t.shape[0], 1) if axis == 1 else (1, t.shape[1])
    valid = (t.valid[0], None) if axis == 1 else (None, t.valid[1])
    out = b.name()
    b.w.line(f"{out} = pl.{name}({t.name})")

    def fn(env: Env) -> Blocks:
        x = t.at(env, b.context)
        dim = axis + 1
        if kind == "sum":
            data = x.filled(0).float().sum(dim, keepdim=True)
        elif kind == "max":
            data = x.filled(float("-inf")).float().amax(dim, keepdim=True)
        else:
            data = x.filled(float("inf")).float().amin(dim, keepdim=True)
        keep = list(x.valid)
        keep[axis] = None
        return Blocks(data.to(t.dtype), tuple(keep))

    facts = t.facts.summed(t.shape[axis]) if kind == "sum" else t.facts
    return b.tile(out, shape, t.dtype, facts, valid, fn)


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
    b.w.features.add("tail")
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
    if t is None:
        return False
    r, c = t.shape
    options = [
        (r * c, 1),
        (1, r * c),
        (r // 2, c * 2) if r % 2 == 0 else (c, r),
        (r * 2, c // 2) if c % 2 == 0 else (c, r),
    ]
    if b.split is not None:
        return False
    if c == 1 or r == 1:
        options = [(c, r), *options[2:]]
    shape = b.w.pick(options)
    if b.w.wild and b.w.chance(30):
        shape = (1, *shape)
    name = b.name()
    b.w.line(f"{name} = pl.reshape({t.name}, {list(shape)})")
    whole = (None,) * len(shape)
    t.frozen = True
    b.tile(
        name, shape, t.dtype, t.facts, whole, lambda env: Blocks(b.data(env, t).reshape(-1, *shape), whole)
    )
    if len(shape) == 3:
        t3 = b.tiles.pop()
        back = b.name()
        b.w.line(f"{back} = pl.reshape({name}, {[*shape[1:]]})")
        fn = lambda env: Blocks(b.data(env, t3).reshape(-1, *shape[1:]), (None, None))  # noqa: E731
        b.tile(back, shape[1:], t.dtype, t.facts, (None, None), fn)
    return True


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


def replaced(
    b: Body, old: Tile, facts: Facts, fn: Callable[[Env], Blocks], valid: tuple[None, ...] | None = None
) -> Tile:
    """The tile under its old name, after a change in place."""
    b.tiles.remove(old)
    return b.tile(old.name, old.shape, old.dtype, facts, valid or old.valid, fn)


def insert(b: Body) -> bool:
    """Part of a tile written into another, in place."""
    if b.split is not None:
        target = b.some(lambda t: b.changeable(t) and len(t.shape) == 2)
        source = target and b.some(
            lambda s: s is not target and s.full and s.shape == target.shape and s.dtype == target.dtype
        )
        if target is None or not source:
            return False
    else:
        target = fresh_target(b)
        source = b.some(
            lambda s: s.full and len(s.shape) == 2 and s.dtype == target.dtype and s is not target
            and all(x <= y for x, y in zip(s.shape, target.shape, strict=True))
        )  # fmt: skip
        if source is None:
            return False
    at = [b.w.choose(d - s + 1) for d, s in zip(target.shape, source.shape, strict=True)]
    if b.w.chance(40):
        parts = ", ".join(f"{o} : {o + s}" for o, s in zip(at, source.shape, strict=True))
        b.w.line(f"{target.name}[{parts}] = {source.name}")
    else:
        rebind = f"{target.name} = " if b.w.chance(50) else ""
        b.w.line(f"{rebind}pl.assemble({target.name}, {source.name}, {at})")
    box = (slice(None), *(slice(o, o + s) for o, s in zip(at, source.shape, strict=True)))
    old, part = target, source

    def fn(env: Env) -> Blocks:
        data = b.data(env, old).clone()
        data[box] = b.data(env, part)
        return Blocks(data, (None,) * len(old.shape))

    replaced(b, old, old.facts.join(part.facts), fn)
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
        value = b.data(env, t)[(slice(None), *at)].reshape(-1, *[1] * len(x.shape))
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
        data[(slice(None), *at)] = value
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
    binary: 8, load: 6, simple_unary: 4, with_number: 5, math_unary: 8, expand: 10, reduce: 8, convert: 6,
    fillpad: 3, set_valid: 3, compare: 3, reshape: 4, transpose: 4, move: 3, extract: 4, full: 3, insert: 4,
    assembled: 3, read_element: 3, write_element: 3, read_number: 3, padded_max: 3,
}  # fmt: skip
