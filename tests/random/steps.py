"""Steps inside of a region that compute: each writes one op (or a few) and the same in torch.

A step returns False if it has nothing to work on; the body then loads something.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .blocks import Blocks, cast, computed
from .body import Body, dtype_name
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


def _positive(b: Body, t: Tile) -> Tile:
    """abs(t) + 1: never near zero."""
    text = f"pl.add(pl.abs({t.name}), {'1.0' if t.is_float else '1'})"
    fn = lambda env: computed(lambda x: x + 1, b.data(env, t).abs())  # noqa: E731
    return b.emit(text, t, fn, t.facts.plus(Facts(1.0, 0.0, 0)))


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
        common = _promoted(x, y)
        data = lambda env: fn(b.data(env, x).to(common), b.data(env, y).to(common)).to(x.dtype)  # noqa: E731
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
    if b.w.chance(30):
        broadcast(b, t, v, along_rows)
        return True
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


def broadcast(b: Body, t: Tile, v: Tile, along_rows: bool) -> Tile:
    """The vector itself, in the extents of ``t`` or of a tile without a value."""
    target = t.name
    if t.full and b.w.chance(25):
        target = f"pl.create_tensor({list(t.shape)}, dtype={dtype_name(t.dtype)})"
    common = _promoted(t, v)
    name = "row_expand" if along_rows else "col_expand"
    fn = lambda env: b.data(env, v).to(common).expand(-1, *t.shape)  # noqa: E731
    return b.emit(_call(b, name, target, v.name), t, fn, v.facts, common)


def argmax(b: Body) -> bool:
    """The first of the largest elements; of exact values, so that the largest are the same on both sides."""
    t = b.some(lambda t: t.is_float and len(t.shape) == 2 and t.facts.exact)
    if t is None or (b.split == 1 and t.shape[1] > 1):
        return False
    name = b.name()
    b.w.line(f"{name} = pl.row_argmax({t.name})")

    def fn(env: Env) -> Blocks:
        x = t.at(env, b.context)
        data = x.filled(float("-inf")).float()
        at = torch.arange(t.shape[1]).expand(data.shape)
        largest = data == data.amax(2, keepdim=True)
        first = torch.where(largest, at, t.shape[1]).amin(2, keepdim=True)
        return Blocks(first.to(torch.int32), (x.valid[0], None))

    b.tile(name, (t.shape[0], 1), I32, Facts(t.shape[1], 0.0, 0), (t.valid[0], None), fn)
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
