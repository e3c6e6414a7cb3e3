"""Control flow inside of a region: loops with and without carried values, branches, unrolled code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .blocks import Blocks
from .body import Body, dtype_name
from .facts import Facts
from .shapes import make_full
from .writer import F32, I32, Context, Env, Scalar


def trip_index(outer: Context, context: Context, name: str, trips: int) -> Scalar:
    """The loop variable of ``context``."""
    return Scalar(name, context, lambda env: torch.arange(trips).repeat(outer.blocks(env)))


def carried(b: Body) -> bool:
    """A loop over the column chunks of a tensor that carries one tile; closed form on the torch side."""
    w, p = b.w, b.place
    trips = w.pick((2, 3, 4))
    width = 16 if p.tn % 16 == 0 else p.tn
    m = b.source("rows", trips * width, (F32,))
    kind = w.pick(("add", "maximum", "minimum", "decay", "swap"))
    init = make_full(b, (p.tm, width), F32, 1.0)
    b.tiles.remove(init)
    name, other = init.name, w.fresh("a")
    if kind == "swap":
        w.line(f"{other} = pl.full([{p.tm}, {width}], pl.FP32, -1.0)")
    i, part = w.fresh("i"), w.fresh("a")
    construct = w.pick(
        (
            f"pl.range({trips})",
            f"pl.range(0, {trips * width}, {width})",
            f"pl.pipeline({trips}, stage=2)",
            f"pl.unroll({trips})",
        )
    )
    offset = i if f", {width})" in construct else f"{i} * {width}"
    w.line(f"for {i} in {construct}:")
    live = f", valid_shape=[{p.vr.text}, {width}]" if p.vr else ""
    with w.indented():
        w.line(f"{part} = pl.slice({m.name}, [{p.tm}, {width}], [{p.r0.text}, {offset}]{live})")
        if kind == "swap":
            w.line(f"{name}, {other} = {other}, pl.add({part}, {name})" if w.chance(50) else f"old = {name}")
            if w.lines[-1].strip().startswith("old"):
                w.line(f"{name} = {other}")
                w.line(f"{other} = pl.add({part}, old)")
        elif kind == "decay":
            w.line(f"{name} = pl.add({part}, pl.mul({name}, 0.5))")
        else:
            w.line(f"{name} = pl.{kind}({part}, {name})")

    def parts(env: Env) -> Tensor:
        """[trips, blocks, tm, width]."""
        n = b.context.blocks(env)
        rows = (p.r0.at(env, b.context).expand(n)[:, None] + torch.arange(p.tm)).clamp(
            max=m.shape(env)[0] - 1
        )
        return env.memory[m.name][rows].reshape(n, p.tm, trips, width).permute(2, 0, 1, 3)

    def fn(env: Env) -> Blocks:
        x = parts(env)
        if kind == "add":
            data = 1 + x.sum(0)
        elif kind == "maximum":
            data = x.amax(0).clamp(min=1.0)
        elif kind == "minimum":
            data = x.amin(0).clamp(max=1.0)
        elif kind == "decay":
            weights = 0.5 ** torch.arange(trips - 1, -1, -1)
            data = (x * weights[:, None, None, None]).sum(0) + 0.5**trips
        else:  # the two names take turns: every second part is added to the one, the others to the other
            data = (1.0 if trips % 2 == 0 else -1.0) + x[trips % 2 :: 2].sum(0)
        rows = None if p.vr is None else p.vr.at(env, b.context).expand(len(data))
        live = Blocks(data, (rows, None))
        return Blocks(live.filled(float("nan")), live.valid)

    facts = m.facts.summed(trips).plus(Facts(1.0, 0.0, 0))
    grain = None if facts.grain is None else facts.grain + trips
    facts = Facts(facts.bound, facts.tol or (0.0 if facts.grain is not None else 1e-5), grain)
    # What enters the loop is whole and what a trip gives has a tail, so that the extents are unknown
    if p.vr is not None:
        filled = w.fresh("a")
        w.line(f"{filled} = pl.set_validshape({name}, {p.vr.text}, {width})")
        name = filled
    b.tile(name, (p.tm, width), F32, facts, (p.vr, None), fn, home=False)
    return True


def each_column(b: Body) -> bool:
    """A loop over the parts of a tile: each is computed on and put into a new tile, in place."""
    w = b.w
    t = b.some(lambda t: t.full and len(t.shape) == 2 and t.shape[1] % 32 == 0)
    if t is None or b.split is not None:
        return False
    trips = w.pick([n for n in (2, 4) if t.shape[1] % (16 * n) == 0] or [2])
    width = t.shape[1] // trips
    target = make_full(b, t.shape, t.dtype, 0.0 if t.is_float else 0)
    b.tiles.remove(target)
    i = w.fresh("i")
    w.line(f"for {i} in pl.range({trips}):")
    context = Context(b.context, lambda env: trips)
    index = trip_index(b.context, context, i, trips)
    inner = b.nested(context=context, locked=frozenset(t.name for t in b.tiles))
    with w.indented():
        part = w.fresh("a")
        w.line(f"{part} = pl.slice({t.name}, [{t.shape[0]}, {width}], [0, {i} * {width}])")

        def cut(env: Env) -> Blocks:
            data = b.data(env, t).reshape(-1, t.shape[0], trips, width).permute(0, 2, 1, 3)
            return Blocks(data.reshape(-1, t.shape[0], width), (None, None))

        def numbered(env: Env) -> Tensor:
            x = inner.data(env, piece)
            return ((x.float() if t.is_float else x) + index.at(env, context).reshape(-1, 1, 1)).to(t.dtype)

        piece = inner.tile(part, (t.shape[0], width), t.dtype, t.facts, (None, None), cut)
        result = inner.emit(
            f"pl.add({part}, pl.cast({i}, pl.FP32))" if t.is_float else f"pl.add({part}, {i})", piece,
            numbered, piece.facts.plus(Facts(float(trips), 0.0, 0)),
        )  # fmt: skip
        w.line(f"pl.assemble({target.name}, {result.name}, [0, {i} * {width}])")

    def joined(env: Env) -> Blocks:
        data = env.tiles[result].data.reshape(-1, trips, t.shape[0], width).permute(0, 2, 1, 3)
        return Blocks(data.reshape(-1, *t.shape), (None, None))

    b.tile(target.name, t.shape, t.dtype, result.facts, (None, None), joined)
    return True


def condition(b: Body) -> tuple[str, Callable[[Env], Tensor]]:
    """A condition on index scalars, and its value in every block."""
    w, p = b.w, b.place
    options: list[tuple[str, Callable[[Env], Tensor]]] = []

    def of(s: Scalar) -> Callable[[Env], Tensor]:
        return lambda env: s.at(env, b.context)

    if p.r0.constant is None:
        at = of(p.r0)
        options.append((f"{p.r0.text} < {p.tm}", lambda env: at(env) < p.tm))
        options.append((f"{p.r0.text} // {p.tm} % 2 == 1", lambda env: at(env) // p.tm % 2 == 1))
    if b.flat is not None and b.flat.constant is None:
        flat = of(b.flat)
        options.append((f"{b.flat.text} == 0", lambda env: flat(env) == 0))
        options.append(
            (f"{b.flat.text} > 0 and {b.flat.text} < 3", lambda env: (flat(env) > 0) & (flat(env) < 3))
        )
        options.append((f"not {b.flat.text} == 1", lambda env: flat(env) != 1))
    count = b.layout.rows
    if count.constant is None:
        options.append(
            (f"{count.text} > 20", lambda env: (of(count)(env) > 20).expand(b.context.blocks(env)))
        )
    number = b.w.number()
    options.append(
        (f"{number} >= 3", lambda env: torch.tensor([env.numbers[number] >= 3]).expand(b.context.blocks(env)))
    )
    return w.pick(options)


def branch(b: Body) -> bool:
    """An ``if`` that rebinds a name: on both paths, or on one."""
    w = b.w
    t = b.some(lambda t: t.facts.bound <= 64)
    if t is None:
        return False
    text, truth = condition(b)
    name = w.fresh("a")
    both = w.chance(60)
    then = w.pick((f"pl.neg({t.name})", f"pl.add({t.name}, {t.name})"))
    double = "add" in then
    if not both:
        # The name before the `if`: another value of the same extents
        w.line(f"{name} = pl.mul({t.name}, {'0.5' if t.is_float else '3'})")
    w.line(f"if {text}:")
    w.line(f"    {name} = {then}")
    nested = both and w.chance(30)
    if both:
        w.line("else:")
        if nested:
            inner, inner_truth = condition(b)
            w.line(f"    if {inner}:")
            w.line(f"        {name} = pl.abs({t.name})")
            w.line("    else:")
            w.line(f"        {name} = pl.mul({t.name}, {t.name})")
        else:
            w.line(f"    {name} = pl.abs({t.name})")

    def fn(env: Env) -> Tensor:
        x = b.data(env, t)
        shape = (-1, *[1] * len(t.shape))
        yes = x + x if double else -x
        no = x.abs() if both else (x.float() * 0.5).to(t.dtype) if t.is_float else x * 3
        if nested:
            square = (x.float() * x.float()).to(t.dtype) if t.is_float else x * x
            no = torch.where(inner_truth(env).reshape(shape), x.abs(), square)
        return torch.where(truth(env).reshape(shape), yes, no)

    facts = t.facts.plus(t.facts).join(t.facts.times(t.facts) if nested else t.facts)
    if not both:
        grain = None if t.facts.grain is None else t.facts.grain + 1
        facts = Facts(3 * t.facts.bound, 2 * t.facts.tol, grain)
    value = lambda env: t.at(env, b.context).with_data(fn(env))  # noqa: E731
    b.tile(name, t.shape, t.dtype, facts, t.valid, value, home=t.home)
    return True


def indices(b: Body) -> list[Scalar]:
    """Integers that the region knows."""
    p = b.place
    found = [
        s
        for s in (*b.numbers, p.r0, b.flat, p.c0, p.vr, b.layout.rows)
        if s is not None and s.constant is None
    ]
    return [*found, b.w.const(b.w.pick((3, 1, 7)))]


def expression(b: Body, depth: int) -> Scalar:
    """Random integer arithmetic, printed with only the parentheses that Python needs half of the time."""
    w = b.w
    if depth == 0 or not w.chance(75):
        return w.pick(indices(b))
    x = expression(b, depth - 1)
    form = w.choose(8)
    if form < 5:
        y = expression(b, depth - 1)
        text, fn = (
            ("({}) + ({})", torch.add), ("({}) - ({})", torch.sub), ("pl.min({}, {})", torch.minimum),
            ("pl.max({}, {})", torch.maximum), ("({}) * ({})", torch.mul),
        )[form]  # fmt: skip
        if form < 2 and w.chance(50):
            text = f"{{}} {'+-'[form]} ({{}})"
        return _both(b, text, fn, x, y)
    k = w.pick((2, 3, 5))
    text, one = (
        (f"({{}}) // {k}", lambda a: a // k), (f"({{}}) % {k}", lambda a: a % k), ("-({})", torch.neg),
    )[form - 5]  # fmt: skip
    return Scalar(text.format(x.text), b.context, lambda env: one(x.at(env, b.context)))


def _both(b: Body, text: str, fn: Callable[[Tensor, Tensor], Tensor], x: Scalar, y: Scalar) -> Scalar:
    return Scalar(
        text.format(x.text, y.text), b.context, lambda env: fn(x.at(env, b.context), y.at(env, b.context))
    )


def index_number(b: Body) -> bool:
    """A tile and a number from index arithmetic: floor division and remainders of negative numbers too."""
    w = b.w
    t = b.some(lambda t: t.facts.bound <= 64)
    if t is None:
        return False
    x = expression(b, 3)
    text = f"({x.text}) % 11"
    if w.chance(50):
        name = w.fresh("s")
        w.line(f"{name} = {text}")
        text = name
    if t.is_float:
        text = f"pl.cast({text}, pl.FP32)"

    def fn(env: Env) -> Tensor:
        data = b.data(env, t)
        value = (x.at(env, b.context) % 11).expand(b.context.blocks(env)).reshape(-1, *[1] * len(t.shape))
        return (data.float() - value).to(t.dtype) if t.is_float else data - value.to(t.dtype)

    b.emit(f"pl.sub({t.name}, {text})", t, fn, t.facts.plus(Facts(10.0, 0.0, 0)))
    return True


def ramp(b: Body) -> bool:
    """A row of consecutive numbers, from a constant or from index arithmetic."""
    w = b.w
    if b.split == 1:
        return False
    n, descending = b.place.tn, w.chance(40)
    dtype = w.pick((I32, I32, torch.int16))
    x = expression(b, 2) if w.chance(50) else None
    constant = w.choose(9) - 4
    start = str(constant) if x is None else f"pl.cast(({x.text}) % 11, {dtype_name(dtype)})"
    shown = w.pick((f"[1, {n}], {dtype_name(dtype)}", f"[1, {n}], dtype={dtype_name(dtype)}"))
    name = b.name()
    w.line(f"{name} = pl.arange({start}, {shown}{', descending=True' if descending else ''})")

    def fn(env: Env) -> Blocks:
        first = torch.tensor([constant]) if x is None else x.at(env, b.context) % 11
        first = first.expand(b.context.blocks(env)).reshape(-1, 1, 1)
        steps = torch.arange(n).reshape(1, 1, n)
        return Blocks((first - steps if descending else first + steps).to(dtype), (None, None))

    b.tile(name, (1, n), dtype, Facts(n + 11.0, 0.0, 0), (None, None), fn)
    return True


def powers(b: Body) -> bool:
    """A tile multiplied by a constant as often as a run-time number says."""
    w = b.w
    t = b.some(lambda t: t.is_float and t.facts.exact and t.facts.bound <= 64)
    if t is None:
        return False
    n = w.number()
    name, i = w.fresh("a"), w.fresh("i")
    w.line(f"{name} = pl.mul({t.name}, 1.0)")
    w.line(f"for {i} in pl.range({n}):")
    w.line(f"    {name} = pl.mul({name}, 0.5)")

    def fn(env: Env) -> Tensor:
        # Every product is rounded, but halves are exact until they underflow
        return (b.data(env, t).double() * 0.5 ** int(env.numbers[n])).to(t.dtype)

    facts = Facts(
        t.facts.bound,
        2.0**-20 if t.dtype == torch.float16 else 0.0,
        None if t.facts.grain is None else t.facts.grain + 6,
    )
    value = lambda env: t.at(env, b.context).with_data(fn(env))  # noqa: E731
    b.tile(name, t.shape, t.dtype, facts, t.valid, value, home=t.home)
    return True
