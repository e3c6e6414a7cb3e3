"""Loops and branches with random bodies: names that a trip carries to the next, or that one branch rebinds.

On the torch side a loop runs its steps once for every trip, and an ``if`` runs both branches in all blocks
and takes each block's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from .blocks import Blocks
from .body import Body
from .control import condition
from .facts import Facts
from .writer import Env, Scalar, Tile

Steps = Callable[[Body, int], None]  # writes at most so many random steps
Recorded = list[Callable[[Env], None]]


def recorded(b: Body, write: Callable[[], None]) -> Recorded:
    """The torch steps of what ``write`` writes, taken out of the program's own."""
    w = b.w
    outside, w.steps = w.steps, []
    write()
    inside, w.steps = w.steps, outside
    return inside


def alike(a: Tile, b: Tile) -> bool:
    """One type: extents, element type and valid rectangle."""
    return (a.shape, a.dtype) == (b.shape, b.dtype) and all(
        x is y for x, y in zip(a.valid, b.valid, strict=True)
    )


def bound_to(body: Body, name: str) -> Tile | None:
    return next((t for t in body.tiles if t.name == name), None)


# ------------------------------------------------------------------------------------------ loops
def loop(b: Body, steps: Steps) -> bool:
    """A loop whose trips pass a tile or two on; with a run-time number of trips there may be none."""
    w = b.w
    if b.depth > 1:
        return False
    carried = _carried(b)
    if not carried:
        return False
    static = w.chance(70)
    count = w.pick((2, 3, 1)) if static else 0
    number = "" if static else w.number()
    i = w.fresh("i")
    forms = [f"pl.range({count or number})", f"pl.pipeline({count or number}, stage=2)"]
    w.line(f"for {i} in {w.pick((*forms, f'pl.unroll({count})') if static else forms)}:")
    index = Scalar(i, b.context, lambda env: torch.zeros(1, dtype=torch.int64))  # each trip sets it
    params = [_parameter(b, t) for t in carried]
    names = frozenset(t.name for t in params)
    inner = b.nested(
        tiles=[t for t in b.tiles if t.name not in names] + params, numbers=[*b.numbers, index],
        locked=frozenset(t.name for t in b.tiles) - names | b.locked, typed=names,
    )  # fmt: skip
    nexts: list[Tile] = []

    def write() -> None:
        with w.indented():
            steps(inner, 3)
            nexts.extend(_next(inner, p) for p in params)

    body = recorded(b, write)

    def run(env: Env) -> None:
        for t, p in zip(carried, params, strict=True):
            env.tiles[p] = t.at(env, b.context)
        for trip in range(count or int(env.numbers[number])):
            known = set(env.scalars)
            env.scalars[index] = torch.full((b.context.blocks(env),), trip)
            for step in body:
                step(env)
            after = [env.tiles[x] for x in nexts]
            env.tiles.update(zip(params, after, strict=True))
            env.scalars = {s: v for s, v in env.scalars.items() if s in known}

    w.do(run)
    for t, p in zip(carried, params, strict=True):
        b.tiles.remove(t)
        b.tile(t.name, t.shape, t.dtype, p.facts, t.valid, lambda env, p=p: env.tiles[p])  # type: ignore[misc]
    return True


def _carried(b: Body) -> list[Tile]:
    """Exact tiles whose names may be rebound."""
    free = [t for t in b.tiles if t.facts.exact and t.name not in b.locked | b.typed and len(t.shape) == 2]
    found = free[-2:] if b.w.chance(40) else free[-1:]
    return list(reversed(found))


def _parameter(b: Body, t: Tile) -> Tile:
    """The carried tile as a trip sees it: of any value that :func:`_next` can give."""
    low = max(t.facts.bound, 8.0) if t.is_float else 2.0**31
    facts = Facts(low, 0.0, None if t.is_float else 0)
    return replace(t, facts=facts.rounded(t.dtype), context=b.context, used=False, home=False)


def _next(inner: Body, p: Tile) -> Tile:
    """The last statement about a carried name: some tile of its type, kept small."""
    w = inner.w
    now = bound_to(inner, p.name)
    if now is None:
        raise AssertionError(f"the loop lost {p.name}")
    value = inner.some(lambda t: t.facts.exact and alike(t, now)) or now
    if w.chance(30) and value is not now:
        text = f"pl.add({now.name}, {value.name})"
        fn = lambda env: now_and(env)  # noqa: E731
    else:
        text, fn = f"pl.neg({value.name})", lambda env: -inner.data(env, value)

    def now_and(env: Env) -> torch.Tensor:
        x, y = inner.data(env, now), inner.data(env, value)
        return (x.float() + y.float()).to(p.dtype) if p.is_float else x + y

    if p.is_float:
        text = f"pl.minimum(pl.maximum({text}, -8.0), 8.0)"
    w.line(f"{p.name} = {text}")
    t = replace(p, facts=p.facts)

    def step(env: Env) -> None:
        data = fn(env)
        env.tiles[t] = value.at(env, inner.context).with_data(data.clamp(-8, 8) if p.is_float else data)

    w.do(step)
    inner.tiles = [x for x in inner.tiles if x.name != p.name] + [t]
    return t


# ------------------------------------------------------------------------------------------ branches
def either(b: Body, steps: Steps) -> bool:
    """An ``if`` with random branches: names that they rebind are merged, or lost where the types differ."""
    w = b.w
    if b.depth > 1 or not b.tiles:
        return False
    text, truth = condition(b)
    w.line(f"if {text}:")
    then, orelse = b.nested(), b.nested()
    both = w.chance(60)
    shared = w.fresh("a")
    ends: list[Tile] = []

    def branch(body: Body, partner: Tile | None) -> None:
        with w.indented():
            steps(body, 3)
            end = body.some(lambda t: partner is None or alike(t, partner))
            if both and end is not None:
                w.line(f"{shared} = {end.name}")
                end.frozen = True  # two names for one tile
                ends.append(end)

    ran = [recorded(b, lambda: branch(then, None)), []]
    if both:
        w.line("else:")
        ran[1] = recorded(b, lambda: branch(orelse, ends[0] if ends else None))

    def run(env: Env) -> None:
        for step in (*ran[0], *ran[1]):
            step(env)

    w.do(run)
    for t in list(b.tiles):
        x, y = bound_to(then, t.name), bound_to(orelse, t.name)
        if x is t and y is t:
            continue
        b.tiles.remove(t)
        if x is not None and y is not None and alike(x, y):
            _merge(b, t.name, x, y, truth)
    if len(ends) == 2:
        _merge(b, shared, ends[0], ends[1], truth).frozen = True
    return True


def _merge(b: Body, name: str, x: Tile, y: Tile, truth: Callable[[Env], torch.Tensor]) -> Tile:
    def fn(env: Env) -> Blocks:
        a, c = x.at(env, b.context), y.at(env, b.context)
        taken = truth(env).reshape(-1, *[1] * len(x.shape))
        return Blocks(torch.where(taken, a.data, c.data), a.valid)

    return b.tile(name, x.shape, x.dtype, x.facts.join(y.facts), x.valid, fn)
