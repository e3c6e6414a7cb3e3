"""Stages about tensors in global memory: updates in place, atomic adds, single elements, views, boxes."""

from __future__ import annotations

from torch import Tensor

from .body import Body, Layout
from .facts import Facts
from .regions import Walk
from .writer import BF16, F32, I32, Env, Writer


def update_stage(w: Writer, layout: Layout) -> None:
    """An InOut tensor changed in place, by one region or by a sequence of them."""
    n = w.pick(layout.columns)
    dims, text = [layout.rows, w.const(n)], [layout.row_text, str(n)]
    m = w.declare(dims, w.pick((F32, BF16, I32)), text, "inout", rows=True)
    m.readable = False
    times = w.pick((1, 2, 3))
    if times > 1:
        w.line(f"for {w.fresh('i')} in pl.range({times}):")
        w.depth += 1
    with Walk(w, layout, 16, n, n).body(None, cube=False) as b:
        p = b.place
        t = b.load(m, (16, n), (p.r0, p.c0), (p.vr, p.vc), dims, home=True, plain=True)
        name = w.fresh("a")
        half, one = ("0.5", "1.0") if t.is_float else ("3", "1")
        w.line(f"{name} = pl.add(pl.mul({t.name}, {half}), {one})")
        w.line(f"pl.assemble({m.name}, {name}, [{p.r0.text}, {p.c0.text}])")
    w.depth -= times > 1
    facts = Facts(m.facts.bound * 4 + 8, 0.0, 6) if t.is_float else Facts(2.0**31, 0.0, 0)

    def updated(env: Env) -> Tensor:
        x = env.memory[m.name]
        for _ in range(times):
            x = ((x.float() * 0.5).to(x.dtype).float() + 1.0).to(x.dtype) if t.is_float else x * 3 + 1
        return x

    w.finished(m, facts, updated, readable=True)


def atomic_stage(w: Writer, layout: Layout) -> None:
    """Blocks that add into one place: column chunks of a tensor, or one chunk from every block."""
    n, trips = 32, w.pick((2, 3, 4))
    dtype = w.pick((F32, I32))
    dims, text = [layout.rows, w.const(n)], [layout.row_text, str(n)]
    target = w.scratch(dims, dtype, text, rows=True, init=0)
    wide = w.declare([layout.rows, w.const(trips * n)], dtype, [layout.row_text, str(trips * n)], rows=True)
    walk = Walk(w, layout, 16, n, n)
    outer, i = walk.loop("parallel", w.root, walk.row_blocks, "i")
    same = w.chance(30)
    j = w.fresh("j")
    w.line(f"with pl.spmd({trips}):" if same else f"for {j} in pl.spmd({trips}):")
    w.depth += 1
    context, part = walk.axis(outer, w.const(trips), j)
    p = walk.place(context, i, None)
    b = Body(w, layout, context, p, flat=i)
    column = w.const(n) if same else w.named("c", w.derive(context, f"{{}} * {n}", lambda x: x * n, part))
    t = b.load(wide, (16, n), (p.r0, column), (p.vr, None), plain=True)
    if w.chance(50):
        t = b.doubled(t)
    b.store(target, t, (p.r0, w.const(0)), add=True)
    target.facts, target.readable = Facts(t.facts.bound * trips, 0.0, t.facts.grain), True
    w.depth -= 2


def scalar_stage(w: Writer, layout: Layout) -> None:
    """Elements read and written one by one, in a grid or in a loop."""
    n = 8
    dtype = w.pick((F32, I32))
    m, table, out = w.input(dtype, 1, n), w.input(I32, n), w.output(dtype, 1, n)
    i, x, k = w.fresh("i"), w.fresh("s"), w.fresh("s")
    depth = w.depth
    if w.chance(50):
        w.line(f"for {i} in pl.spmd({n}):")
    else:
        w.line(f"with pl.at(level=pl.Level.CORE_GROUP):\n    for {i} in pl.range({n}):")
        w.depth += 1
    w.depth += 1
    value = f"{x} * 2 + pl.min({k}, 3)" if dtype == I32 else f"{x} * 2.0 - pl.cast(pl.max({k}, 0), pl.FP32)"
    w.line(f"{x} = " + w.pick((f"pl.read({m.name}, [0, {i}])", f"{m.name}[0, {i}]")))
    w.line(f"{k} = pl.tensor.read({table.name}, [{n - 1} - {i}])")
    at = f"[0, {i}]"
    forms = (f"pl.write({out.name}, {at}, {value})", f"pl.tensor.write({out.name}, {at}, {value})")
    w.line(w.pick((*forms, f"{out.name}{at} = {value}")))
    w.depth = depth

    def fn(env: Env) -> Tensor:
        a, t = env.memory[m.name], env.memory[table.name].flip(0)
        return a * 2 + t.clamp(max=3) if dtype == I32 else a * 2.0 - t.clamp(min=0).float()

    w.finished(out, Facts(40.0, 0.0, 2), fn)


def view_stage(w: Writer, layout: Layout) -> None:
    """Views and reshapes of tensors in the orchestration, arrays of numbers, tensors chosen by an ``if``."""
    pages, r, c = w.pick((2, 3)), 16, 32
    dtype = w.pick((F32, BF16))
    m, other, out = (
        w.input(dtype, pages, r, c), w.input(dtype, pages * r, c), w.output(dtype, pages * r, c),
    )  # fmt: skip
    flat = w.fresh("y")
    w.line(f"{flat} = pl.reshape({m.name}, [{pages * r}, {c}])")
    number, name = "", flat
    if w.chance(40):
        number, name = w.number(), w.fresh("y")
        w.line(f"if {number} > 2:\n    {name} = {flat}\nelse:\n    {name} = {other.name}")
    i, v, a, order, page = (w.fresh(x) for x in ("i", "y", "a", "order", "s"))
    backwards = w.chance(50)
    if backwards:  # arrays are indexed at compile time
        w.line(f"{order} = pl.array.create({pages}, pl.INT32)")
        for k in range(pages):
            w.line(f"{order}[{k}] = {pages - 1 - k}")
        w.line(f"for {i} in pl.unroll({pages}):\n    {page} = {order}[{i}]")
    else:
        w.line(f"for {i} in pl.{w.pick(('parallel', 'range'))}({pages}):\n    {page} = {i}")
    forms = [
        f"{name}[{page} * {r} : {page} * {r} + {r}, 0:{c}]",
        f"pl.slice({name}, [{r}, {c}], [{page} * {r}, 0])",
    ]
    if not number:
        forms += [f"{m.name}[{page}]", f"pl.slice({m.name}, [1, {r}, {c}], [{page}, 0, 0], drop_dims=[0])"]
    w.line(f"    {v} = {w.pick(forms)}")
    operand = w.pick((f"pl.slice({v}, [{r}, {c}], [0, 0])", v))  # a tensor as an operand is loaded whole
    w.line("    with pl.at(level=pl.Level.CORE_GROUP):")
    w.line(f"        {a} = pl.abs({operand})")
    w.line(f"        {out.name} = pl.assemble({out.name}, {a}, [{i} * {r}, 0])")

    def fn(env: Env) -> Tensor:
        x = env.memory[m.name]
        if number and env.numbers[number] <= 2:
            x = env.memory[other.name].reshape(pages, r, c)
        return (x.flip(0) if backwards else x).abs().reshape(pages * r, c)

    w.finished(out, Facts(2.0, 0.0, 2), fn, readable=True)


def slice_stage(w: Writer, layout: Layout) -> None:
    """Boxes of tensors of three axes, with axes dropped, in a grid."""
    pages, r, c = w.pick((2, 3)), 16, 32
    dtype = w.pick((F32, BF16, I32))
    m, out = w.input(dtype, pages, r, c), w.output(dtype, pages, r, c)
    i, a, b = w.fresh("i"), w.fresh("a"), w.fresh("a")
    low = 0.25 if dtype.is_floating_point else 1
    box = f"pl.slice({m.name}, [1, {r}, {c}], [{i}, 0, 0], drop_dims=[0])"
    whole = f"pl.assemble({out.name}, pl.reshape({b}, [1, {r}, {c}]), [{i}, 0, 0])"
    w.line(f"for {i} in pl.spmd({pages}):")
    w.line(f"    {a} = {w.pick((f'{m.name}[{i}, :, :]', f'{m.name}[{i}]', box))}")
    w.line(f"    {b} = pl.maximum({a}, {low})")
    w.line(f"    {w.pick((f'{out.name}[{i}] = {b}', f'{out.name}[{i}, :, :] = {b}', whole))}")
    w.finished(out, Facts(9.0, 0.0, 2), lambda env: env.memory[m.name].clamp(min=low))
