"""Stages of a program: a stage is one or a few regions that read what is there and write something new."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch

from .blocks import Blocks
from .body import Body, Layout, Place
from .control import branch, carried, each_column, index_number, powers
from .facts import Facts
from .nesting import either, loop
from .orchestration import carried_stage, either_stage, paged_stage
from .products import k_loop, tile_product
from .regions import Walk
from .steps import STEPS, load
from .writer import BF16, F32, I32, Env, Memory, Scalar, Tile, Writer

Stage = Callable[[Writer, Layout], None]
_ANYWHERE = {**STEPS, carried: 5, each_column: 4, branch: 6, powers: 3, index_number: 5}
_BODY = tuple(s for s, weight in _ANYWHERE.items() for _ in range(weight))


def some_steps(b: Body, most: int) -> None:
    """Random steps; fewer are simpler."""
    choices = _WITH_PRODUCTS if b.cube else _BODY
    for _ in range(most):
        if not b.w.chance(80):
            break
        b.pinned.clear()
        step = b.w.pick(choices)
        if b.w.chance(8):
            step = inlined_step(step)
        if not step(b):
            load(b)
    b.pinned.clear()


def loop_step(b: Body) -> bool:
    return loop(b, some_steps)


def either_step(b: Body) -> bool:
    return either(b, some_steps)


_BODY = (*_BODY, *(loop_step,) * 8, *(either_step,) * 8)
_WITH_PRODUCTS = (*_BODY, *(tile_product,) * 16)


# ------------------------------------------------------------------------------------------ results
def new_rows(w: Writer, layout: Layout, n: int, dtype: torch.dtype, init: int | None = None) -> Memory:
    """A tensor [rows, n] for a stage to fill."""
    return w.scratch([layout.rows, w.const(n)], dtype, [layout.row_text, str(n)], rows=True, init=init)


class Results:
    """Where a region's results go: tensors are created before it, when nothing is known of them, and get their
    extents and types from the tiles at its end."""

    def __init__(self, w: Writer) -> None:
        self.w = w
        self.at = len(w.lines)
        self.depth = w.depth
        self.step = len(w.steps)

    def create(
        self, dims: list[Scalar], dtype: torch.dtype, annotation: list[str] | None, rows: bool
    ) -> Memory:
        w = self.w
        lines, steps, depth = w.lines, w.steps, w.depth
        w.lines, w.steps, w.depth = [], [], self.depth
        m = w.scratch(dims, dtype, annotation, rows)
        made, did = w.lines, w.steps
        w.lines, w.steps, w.depth = lines, steps, depth
        w.lines[self.at : self.at] = made
        w.steps[self.step : self.step] = did
        m.line = -1
        return m


def write_results(b: Body, results: Results, walk: Walk) -> None:
    """Store what nothing was computed from, and always the last tile, each at the block's own place."""
    tiles = [t for t in b.tiles if len(t.shape) == 2]
    leaves = [t for t in tiles[:-1] if not t.used and t not in b.outer]
    for t in [tiles[-1], *leaves[-4:]]:
        store_tile(b, results, walk, t)


def store_tile(b: Body, results: Results, walk: Walk, t: Tile) -> None:
    w, p = b.w, b.place
    at_home = t.shape == (p.tm, p.tn) and t.valid == (p.vr, p.vc)
    column = t.shape == (p.tm, 1) and t.valid == (p.vr, None) and walk.column_blocks == 1
    if at_home or column:
        n = p.n if at_home else 1
        dims = [b.layout.rows, w.const(n)]
        m = results.create(dims, t.dtype, [b.layout.row_text, str(n)], True)
        b.store(m, t, [p.r0, p.c0 if at_home else w.const(0)])
        return
    if not t.full:
        value = 0 if t.is_float else 7
        old, name = t, w.fresh("a")
        w.line(f"{name} = pl.fillpad({old.name})")
        value = 0
        whole = (None, None)
        t = b.tile(
            name,
            old.shape,
            old.dtype,
            old.facts,
            whole,
            lambda env: Blocks(old.at(env, b.context).filled(value), whole),
        )
    flat = b.flat or w.const(0)
    count = w.derive(
        w.root, f"{{}} * {walk.column_blocks}", lambda r: r * walk.column_blocks, walk.row_blocks
    )
    r, c = t.shape
    total = w.derive(w.root, f"{{}} * {r}", lambda n: n * r, count)
    text = total.text if total.constant is not None else w.fresh_tensor("E")
    m = results.create([total, w.const(c)], t.dtype, [text, str(c)], False)
    start = w.derive(
        b.context, f"({{}}) * {r}" if not flat.text.isidentifier() else f"{{}} * {r}", lambda f: f * r, flat
    )
    b.store(m, t, [w.named("o", start), w.const(0)])


# ------------------------------------------------------------------------------------------ stages
def sizes(w: Writer, layout: Layout, fractal: bool, split: int | None) -> tuple[int, int, int]:
    """Tile rows and columns, and the columns of the tensors."""
    n = w.pick(layout.columns)
    if w.wild:
        tm, tn = w.pick((8, 16, 5, 24, 1 if not fractal else 8)), w.pick((n, 24, 16, 7))
    else:
        tm = w.pick((16, 32)) if fractal or split is not None else w.pick((16, 32, 8))
        tn = w.pick((n, 32)) if split != 1 else w.pick((64, 32))
    return tm, min(tn, n) if w.wild else tn if tn <= n or n < 16 else n, n


def vector_stage(w: Writer, layout: Layout) -> None:
    """Loads and vector ops."""
    tm, tn, n = sizes(w, layout, False, None)
    walk = Walk(w, layout, tm, tn, n)
    results = Results(w)
    with walk.body(None, cube=False) as b:
        b.home()
        some_steps(b, 7)
        write_results(b, results, walk)


def matmul_stage(w: Writer, layout: Layout) -> None:
    """A K loop, alone or with vector ops on its accumulator."""
    mixed = w.chance(75)
    split = w.pick((None, 0, 1, 0)) if mixed else None
    tm, tn, n = sizes(w, layout, True, split)
    walk = Walk(w, layout, tm, tn, n)
    results = Results(w)
    with walk.body(split, cube=True) as b:
        k_loop(b)
        if mixed:
            w.features.add("mixed")
            acc = b.tiles[-1]
            if split is not None:
                w.features.add("split")
            factor = 0.5 if acc.is_float else 2
            fn = lambda env: (b.data(env, acc) * factor).to(acc.dtype)  # noqa: E731
            grain = None if acc.facts.grain is None else acc.facts.grain + 1
            b.emit(
                f"pl.mul({acc.name}, {factor!r})",
                acc,
                fn,
                Facts(acc.facts.bound * 2, acc.facts.tol * 2, grain),
            )
            some_steps(b, 6)
        write_results(b, results, walk)


def attention_stage(w: Writer, layout: Layout) -> None:
    """Products of computed tiles: scores, a row-wise softmax, a second product."""
    tm, tn, n = sizes(w, layout, True, None)
    split = w.pick((None, 0))
    walk = Walk(w, layout, tm, tn, n)
    results = Results(w)
    with walk.body(split, cube=True) as b:
        b.home((F32, BF16))
        some_steps(b, 2)
        if tile_product(b):
            w.features.add("mixed")
            if split is not None:
                w.features.add("split")
            from .steps import expand, math_unary, padded_max, reduce

            padded_max(b)
            math_unary(b)
            reduce(b)
            expand(b)
            tile_product(b)
            # At least one vector op, so that the region is mixed
            t = b.tiles[-1]
            b.emit(f"pl.abs({t.name})", t, lambda env: b.data(env, t).abs(), t.facts)
        some_steps(b, 2)
        write_results(b, results, walk)


def update_stage(w: Writer, layout: Layout) -> None:
    """An InOut tensor changed in place, by a sequence of regions."""
    n = w.pick(layout.columns)
    m = w.declare(
        [layout.rows, w.const(n)], w.pick((F32, BF16, I32)), [layout.row_text, str(n)], "inout", rows=True
    )
    m.readable = False
    walk = Walk(w, layout, 16, n, n)
    times = w.pick((1, 2, 3))
    looped = times > 1 and w.chance(60)
    if looped:
        w.line(f"for {w.fresh('i')} in pl.range({times}):")
        w.depth += 1
    with walk.body(None, cube=False) as b:
        p = b.place
        room = (layout.rows, w.const(n))
        t = b.load(m, (16, n), (p.r0, p.c0), (p.vr, p.vc), room, home=True, plain=True)
        number = "0.5" if t.is_float else "3"
        name = w.fresh("a")
        w.line(f"{name} = pl.add(pl.mul({t.name}, {number}), {'1.0' if t.is_float else '1'})")
        w.line(f"pl.assemble({m.name}, {name}, [{p.r0.text}, {p.c0.text}])")
    if looped:
        w.depth -= 1
    m.facts = Facts(m.facts.bound * 4 + 8, 0.0, 6) if t.is_float else Facts(2.0**31, 0.0, 0)
    m.stage, m.readable = w.stage, True

    def update(env: Env) -> None:
        x = env.memory[m.name]
        for _ in range(times if looped else 1):
            if t.is_float:
                x = ((x.float() * 0.5).to(x.dtype).float() + 1.0).to(x.dtype)
            else:
                x = x * 3 + 1
        env.memory[m.name] = x

    w.do(update)
    w.features.add("dependent" if looped else "update")


def atomic_stage(w: Writer, layout: Layout) -> None:
    """Blocks that add into one place: partial sums of column chunks, or the same tile from every block."""
    n = 32
    trips = w.pick((2, 3, 4))
    dtype = w.pick((F32, I32, F32))
    annotation = [layout.row_text, str(n)]
    target = w.scratch([layout.rows, w.const(n)], dtype, annotation, rows=True, init=0)
    source = None
    wide = w.declare([layout.rows, w.const(trips * n)], dtype, [layout.row_text, str(trips * n)], rows=True)
    by_block = w.chance(70)
    row_blocks = w.derive(w.root, "({} + 15) // 16", lambda r: (r + 15) // 16, layout.rows)
    i, j = w.fresh("i"), w.fresh("j")
    w.line(f"for {i} in pl.parallel({row_blocks.text}):")
    w.depth += 1
    walk = Walk(w, layout, 16, n, n)
    context, index = walk.axis(w.root, row_blocks, i)
    if by_block:
        w.line(f"for {j} in pl.spmd({trips}):")
    else:
        w.line(f"with pl.spmd({trips}):")
    w.depth += 1
    inner, part = walk.axis(context, w.const(trips), j)
    place = walk.place(inner, index, None)
    b = Body(w, layout, inner, place, None, False, index)
    column = w.named("c", w.derive(inner, f"{{}} * {n}", lambda x: x * n, part)) if by_block else w.const(n)
    if place.vr is not None:
        w.features.add("tail")
    t = b.load(wide, (16, n), (place.r0, column), (place.vr, None), plain=True)
    if w.chance(50):
        text = f"pl.mul({t.name}, {'0.5' if t.is_float else '2'})"
        half = 0.5 if t.is_float else 2
        old = t
        t = b.emit(
            text,
            t,
            lambda env: (b.data(env, old) * half).to(dtype),
            Facts(old.facts.bound * 2, 0.0, 3 if t.is_float else 0),
        )
    b.store(target, t, (place.r0, w.const(0)), add=True)
    target.facts = Facts(t.facts.bound * trips, 0.0, t.facts.grain)
    target.readable = True
    w.depth -= 2
    del source


def scalar_stage(w: Writer, layout: Layout) -> None:
    """Elements read and written one by one, in a grid or in a loop."""
    n = 8
    m = w.declare([w.const(1), w.const(n)], w.pick((F32, I32)), ["1", str(n)], prefix="x")
    table = w.declare([w.const(n)], I32, [str(n)], prefix="x")
    out = w.scratch([w.const(1), w.const(n)], m.dtype, ["1", str(n)])
    i = w.fresh("i")
    if w.chance(50):
        w.line(f"for {i} in pl.spmd({n}):")
        depth = 1
    else:
        w.line("with pl.at(level=pl.Level.CORE_GROUP):")
        w.depth += 1
        w.line(f"for {i} in pl.range({n}):")
        depth = 2
    w.depth += 1
    x, k = w.fresh("s"), w.fresh("s")
    w.line(f"{x} = " + w.pick((f"pl.read({m.name}, [0, {i}])", f"{m.name}[0, {i}]")))
    w.line(f"{k} = pl.tensor.read({table.name}, [{n - 1} - {i}])")
    value = f"{x} * 2 + pl.min({k}, 3)" if m.dtype == I32 else f"{x} * 2.0 - pl.cast(pl.max({k}, 0), pl.FP32)"
    w.line(
        w.pick(
            (
                f"pl.write({out.name}, [0, {i}], {value})",
                f"{out.name}[0, {i}] = {value}",
                f"pl.tensor.write({out.name}, [0, {i}], {value})",
            )
        )
    )
    w.depth -= depth
    out.facts, out.stage = Facts(40.0, 0.0, 2 if m.dtype == F32 else 0), w.stage
    out.readable = False

    def fn(env: Env) -> None:
        a, t = env.memory[m.name], env.memory[table.name].flip(0)
        y = a * 2 + t.clamp(max=3) if m.dtype == I32 else a * 2.0 - t.clamp(min=0).float()
        env.memory[out.name] = y.to(m.dtype).reshape(1, n)
        if out.name in env.written:
            env.written[out.name][:] = True

    w.do(fn)


def crossing_stage(w: Writer, layout: Layout) -> None:
    """Tiles and scalars of one region that a later region reads."""
    tm, tn, n = (w.pick((16, 32)), 0, w.pick(layout.columns))
    tn = n
    walk = Walk(w, layout, tm, tn, n)
    results = Results(w)
    context, i = w.root, None
    looped = not walk.single
    depth = w.depth
    if looped:
        context, i = walk.loop(w.pick(("range", "parallel")), w.root, walk.row_blocks, "i")
    place = walk.place(context, i, None)
    walk.at(None)
    b = walk.make(context, i, None, place, None, cube=False)
    b.home()
    some_steps(b, 3)
    keep = [
        t for t in b.tiles if all(v in (None, place.vr, place.vc) or v.constant is not None for v in t.valid)
    ]
    scalar = None
    if w.chance(50):
        m = b.source("row", 32, (F32,))
        if m.facts.exact and m.facts.bound <= 64:
            scalar = w.fresh("s")
            w.line(f"{scalar} = pl.read({m.name}, [0, 5]) * 2.0")
            w.features.add("crossing")
    w.depth -= 1
    if w.chance(30):
        w.line("with pl.at(level=pl.Level.CORE_GROUP):")
        spare = w.fresh("a")
        w.line(f"    {spare} = pl.full([16, 16], pl.FP32, 0.0)")
    walk.at(None)
    b.outer = frozenset(b.tiles)
    b.tiles = [t for t in b.tiles if t in keep]
    if b.tiles:
        t = b.tiles[-1]
        b.emit(f"pl.neg({t.name})", t, lambda env: -b.data(env, t), t.facts)
    else:
        b.home()
    if scalar is not None and b.tiles[-1].is_float:
        x = b.small(b.tiles[-1])
        number = m
        b.emit(
            f"pl.add({x.name}, {scalar})", x,
            lambda env: (b.data(env, x).float() + env.memory[number.name][0, 5] * 2.0).to(x.dtype),
            x.facts.plus(number.facts.times(Facts(2.0, 0.0, 0))),
        )  # fmt: skip
    some_steps(b, 2)
    write_results(b, results, walk)
    w.depth = depth
    w.features.add("dependent")


def task_stage(w: Writer, layout: Layout) -> None:
    """Regions ordered by task ids: deps=, arrays of ids, join nodes; in a manual scope or not."""
    n = w.pick(layout.columns)
    parts = w.pick((2, 3))
    manual = w.chance(50)
    middle = w.scratch([w.const(parts * 16), w.const(n)], F32, [str(parts * 16), str(n)])
    source = w.declare([w.const(parts * 16), w.const(n)], F32, [str(parts * 16), str(n)])
    final = w.scratch([w.const(parts * 16), w.const(n)], F32, [str(parts * 16), str(n)])
    depth = w.depth
    if manual or w.chance(40):
        w.line("with pl.manual_scope():" if manual else "with pl.scope():")
        w.depth += 1
    ids = w.fresh("tids")
    w.line(f"{ids} = pl.array.create({parts}, pl.TASK_ID)")
    u, tid = w.fresh("u"), w.fresh("tid")
    unrolled = w.chance(50)
    w.line(f"for {u} in pl.{'unroll' if unrolled else 'parallel'}({parts}):")
    w.line(f"    with pl.at(level=pl.Level.CORE_GROUP) as {tid}:")
    a = w.fresh("a")
    w.line(f"        {a} = pl.slice({source.name}, [16, {n}], [{u} * 16, 0])")
    w.line(f"        pl.assemble({middle.name}, pl.add({a}, pl.cast({u}, pl.FP32)), [{u} * 16, 0])")
    w.line(f"    {ids}[{u}] = {tid}")
    form = w.choose(4)
    deps = [
        f"[{ids}[k] for k in range({parts})]",
        f"[{ids}]",
        ids,
        f"[{', '.join(f'{ids}[{k}]' for k in range(parts))}]",
    ][form]
    if w.chance(50):
        joined = w.fresh("tid")
        w.line(f"{joined} = pl.system.task_dummy(deps={deps})")
        deps = f"[{joined}]"
    last = w.fresh("tid")
    if w.chance(50):
        w.line(f"with pl.spmd({parts}, deps={deps}) as {last}:")
        i = w.fresh("i")
        w.line(f"    {i} = pl.tile.get_block_idx()")
    else:
        w.line(f"with pl.at(level=pl.Level.CORE_GROUP, deps={deps}) as {last}:")
        i = w.fresh("i")
        w.line(f"    for {i} in pl.range({parts}):")
        w.depth += 1
    c = w.fresh("a")
    # The last part first
    w.line(f"    {c} = {middle.name}[({parts - 1} - {i}) * 16 : ({parts - 1} - {i}) * 16 + 16, 0:{n}]")
    w.line(f"    pl.assemble({final.name}, pl.mul({c}, 2.0), [{i} * 16, 0])")
    w.depth = depth
    for m, bound in ((middle, 8.0), (final, 16.0)):
        m.facts, m.stage = Facts(bound, 0.0, 2), w.stage
    middle.read = True
    middle.readable = False
    final.readable = True

    def fn(env: Env) -> None:
        x = env.memory[source.name].reshape(parts, 16, n) + torch.arange(parts).float()[:, None, None]
        env.memory[middle.name] = x.reshape(parts * 16, n)
        env.memory[final.name] = 2 * x.flip(0).reshape(parts * 16, n)
        if final.name in env.written:
            env.written[final.name][:] = True

    w.do(fn)
    w.features.add("dependent")


def view_stage(w: Writer, layout: Layout) -> None:
    """Views and reshapes of tensors in the orchestration, scalar arrays, tensors chosen by an ``if``."""
    pages, r, c = w.pick((2, 3)), 16, 32
    m = w.declare([w.const(pages), w.const(r), w.const(c)], w.pick((F32, BF16)), [str(pages), str(r), str(c)])
    flat = w.fresh("y")
    w.line(f"{flat} = pl.reshape({m.name}, [{pages * r}, {c}])")
    other = w.declare([w.const(pages * r), w.const(c)], m.dtype, [str(pages * r), str(c)])
    out = w.scratch([w.const(pages * r), w.const(c)], m.dtype, [str(pages * r), str(c)])
    chosen = w.chance(40)
    name = flat
    number = ""
    if chosen:
        from .control import scalar_parameter

        number = scalar_parameter(Body(w, layout, w.root, Place(r, c, c, w.const(0), w.const(0), None, None)))
        name = w.fresh("y")
        w.line(f"if {number} > 2:")
        w.line(f"    {name} = {flat}")
        w.line("else:")
        w.line(f"    {name} = {other.name}")
    order = w.fresh("order")
    use_array = w.chance(50)
    if use_array:
        w.line(f"{order} = pl.array.create({pages}, pl.INT32)")
        for k in range(pages):
            w.line(f"{order}[{k}] = {pages - 1 - k}")
    i, v, a = w.fresh("i"), w.fresh("y"), w.fresh("a")
    reverse = use_array
    # Arrays are indexed at compile time
    w.line(f"for {i} in pl.{'unroll' if use_array else w.pick(('parallel', 'range'))}({pages}):")
    page = i
    if use_array:
        page = w.fresh("s")
        w.line(f"    {page} = {order}[{i}]")
    forms = [
        f"{name}[{page} * {r} : {page} * {r} + {r}, 0:{c}]",
        f"pl.slice({name}, [{r}, {c}], [{page} * {r}, 0])",
    ]
    dropped = not chosen and w.chance(40)
    if dropped:
        forms = [f"{m.name}[{page}]", f"pl.slice({m.name}, [1, {r}, {c}], [{page}, 0, 0], drop_dims=[0])"]
    w.line(f"    {v} = {w.pick(forms)}")
    w.line("    with pl.at(level=pl.Level.CORE_GROUP):")
    whole = w.chance(40)  # a tensor as an operand is loaded whole
    w.line(f"        {a} = pl.abs({v if whole else f'pl.slice({v}, [{r}, {c}], [0, 0])'})")
    w.line(f"        {out.name} = pl.assemble({out.name}, {a}, [{i} * {r}, 0])")
    out.facts, out.stage, out.readable = Facts(2.0, 0.0, 2), w.stage, True

    def fn(env: Env) -> None:
        x = env.memory[m.name]
        if chosen and env.numbers[number] <= 2:
            x = env.memory[other.name].reshape(pages, r, c)
        if reverse:
            x = x.flip(0)
        env.memory[out.name] = x.abs().reshape(pages * r, c)
        if out.name in env.written:
            env.written[out.name][:] = True

    w.do(fn)


def slice_stage(w: Writer, layout: Layout) -> None:
    """Boxes of tensors of three axes, with axes dropped, in a grid."""
    pages, r, c = w.pick((2, 3)), 16, 32
    m = w.declare(
        [w.const(pages), w.const(r), w.const(c)], w.pick((F32, BF16, I32)), [str(pages), str(r), str(c)]
    )
    out = w.scratch([w.const(pages), w.const(r), w.const(c)], m.dtype, [str(pages), str(r), str(c)])
    i, a, b = w.fresh("i"), w.fresh("a"), w.fresh("a")
    w.line(f"for {i} in pl.spmd({pages}):")
    w.line(
        f"    {a} = "
        + w.pick(
            (
                f"{m.name}[{i}, :, :]",
                f"{m.name}[{i}]",
                f"pl.slice({m.name}, [1, {r}, {c}], [{i}, 0, 0], drop_dims=[0])",
            )
        )
    )
    w.line(f"    {b} = pl.maximum({a}, {'0.25' if m.dtype.is_floating_point else '1'})")
    w.line(
        "    "
        + w.pick(
            (
                f"{out.name}[{i}] = {b}",
                f"{out.name}[{i}, :, :] = {b}",
                f"pl.assemble({out.name}, pl.reshape({b}, [1, {r}, {c}]), [{i}, 0, 0])",
            )
        )
    )
    out.facts, out.stage = Facts(9.0, 0.0, 2), w.stage

    def fn(env: Env) -> None:
        env.memory[out.name] = env.memory[m.name].clamp(min=0.25 if m.dtype.is_floating_point else 1)
        if out.name in env.written:
            env.written[out.name][:] = True

    w.do(fn)


# ------------------------------------------------------------------------------------------ inline kernels
_WORD = re.compile(r"[A-Za-z_]\w*")


def _helper(w: Writer, body: list[str], known: set[str], results: Sequence[str] = ()) -> str:
    """Lines as an inline kernel: what they read of their surroundings becomes parameters.  Gives the call."""
    free = sorted({x for line in body for x in _WORD.findall(re.sub(r'"[^"]*"', "", line))} & known)
    name = w.fresh_tensor("helper")
    tensors = {m.name for m in w.memory}
    parameters = [f"{x}: {w.pick(('pl.Tensor', repr('pl.Tensor')))}" if x in tensors else x for x in free]
    margin = min((len(x) - len(x.lstrip()) for x in body), default=0)
    w.helpers += ["", "", "@pl.jit.inline", f"def {name}({', '.join(parameters)}):"]
    w.helpers += ["    " + x[margin:] for x in body] or ["    pass"]
    if results:
        w.helpers.append(f"    return {', '.join(results)}")
    keywords = w.choose(len(free) + 1)  # once an argument goes by keyword, all after it do
    plain = len(free) - keywords
    w.features.add("inline")
    return f"{name}({', '.join([*free[:plain], *(f'{x}={x}' for x in free[plain:])])})"


def inlined(stage: Stage) -> Stage:
    """A stage as an inline kernel."""

    def run(w: Writer, layout: Layout) -> None:
        lines, depth = w.lines, w.depth
        w.lines, w.depth = [], 1
        before = len(w.memory)
        stage(w, layout)
        body, w.lines, w.depth = w.lines, lines, depth
        for m in w.memory[before:]:
            if m.kind == "scratch":  # created by the caller, so that later stages see it
                line = next(x for x in body if x.startswith(f"    {m.name} = pl.create_tensor("))
                body.remove(line)
                w.lines.append(line)
        w.line(_helper(w, body, {"rows", *(m.name for m in w.memory), *w.parameters}))

    return run


def inlined_step(step: Callable[[Body], bool]) -> Callable[[Body], bool]:
    """A step inside of a region as an inline kernel that returns its tiles."""

    def run(b: Body) -> bool:
        w = b.w
        p = b.place
        lines, w.lines = w.lines, []
        before = list(b.tiles)
        done = step(b)
        body, w.lines = w.lines, lines
        if not body:
            return done
        scalars = [p.r0, p.c0, p.vr, p.vc, b.flat, b.layout.rows]
        known = {x for s in scalars if s is not None for x in _WORD.findall(s.text)} - {"pl", "min"}
        known |= {t.name for t in before} | {m.name for m in w.memory} | set(w.parameters)
        results = [t.name for t in b.tiles if t not in before]
        call = _helper(w, body, known, results)
        w.line(f"{', '.join(results)} = {call}" if results else call)
        return done

    return run


STAGES: tuple[tuple[Stage, int], ...] = (
    (vector_stage, 24), (matmul_stage, 46), (attention_stage, 14), (crossing_stage, 12), (update_stage, 6),
    (atomic_stage, 7), (scalar_stage, 6), (task_stage, 9), (view_stage, 8), (slice_stage, 5), (carried_stage, 8),
    (either_stage, 6), (paged_stage, 8),
)  # fmt: skip
