"""Stages about what is around regions: tiles that loops and branches of the orchestration carry, regions
under run-time conditions, grids and loops whose extents are data, task ids."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .body import Layout
from .facts import Facts
from .writer import BF16, F32, I32, NAMES, Env, Make, Memory, Writer

AT = "with pl.at(level=pl.Level.CORE_GROUP):"


# ------------------------------------------------------------------------------------------ joins
def carried_stage(w: Writer, layout: Layout) -> None:
    """A tile that regions in a loop, or in a branch, rebind: it goes through global memory."""
    trips, c = w.pick((2, 3)), w.pick((32, 64))
    dtype = w.pick((F32, I32, BF16))
    source, out = w.input(dtype, trips * 16, c), w.output(dtype, 16, c)
    kind = w.pick(("loop", "branch", "both branches", "loop and branch", "run-time loop"))
    op = w.pick(("add", "maximum"))
    acc, i, part, count = w.fresh("a"), w.fresh("i"), w.fresh("a"), w.fresh("s")
    number = w.number() if "branch" in kind else ""
    depth = w.depth
    w.line(
        f"{AT}\n    {acc} = pl.full([16, {c}], pl.{NAMES[dtype]}, {1.0 if dtype.is_floating_point else 1})"
    )
    if kind == "run-time loop":
        first = f"pl.cast(pl.read({source.name}, [0, 3]), pl.INT32)"
        w.line(f"    {count} = pl.min(pl.max({first}, 0), {trips})")
    if "loop" in kind:
        w.line(f"for {i} in pl.range({count if kind == 'run-time loop' else trips}):")
        w.depth += 1
        if number:
            w.line(f"if {i} < {number}:")
            w.depth += 1
        w.line(f"{AT}\n    {part} = pl.slice({source.name}, [16, {c}], [{i} * 16, 0])")
        w.line(f"    {acc} = pl.{op}({acc}, {part})")
        w.depth = depth
    else:
        w.line(f"if {number} > 2:\n    {AT}\n        {acc} = pl.{op}({acc}, {source.name}[0:16, :])")
        if kind == "both branches":
            w.line(f"else:\n    {AT}\n        {acc} = pl.{op}({source.name}[0:16, :], {acc})")
    w.line(f"{AT}\n    {out.name}[:, :] = pl.abs({acc})")

    def fn(env: Env) -> Tensor:
        x = env.memory[source.name].reshape(trips, 16, c)
        n = int(env.numbers[number]) if number else 0
        count = {
            "loop": trips, "branch": int(n > 2), "both branches": 1, "loop and branch": min(trips, n),
            "run-time loop": int(x[0, 0, 3].float().trunc().clamp(0, trips)),
        }[kind]  # fmt: skip
        acc = torch.ones(16, c, dtype=dtype)
        for k in range(count):  # in the program's order: bf16 sums round
            acc = acc + x[k] if op == "add" else torch.maximum(acc, x[k])
        return acc.abs()

    w.finished(out, Facts(32.0, 0.0, 2), fn)


def either_stage(w: Writer, layout: Layout) -> None:
    """A grid or a parallel loop, as a run-time number says; then a grid whose size is data."""
    c, number = 32, w.number()
    source, sizes, out = w.input(F32, 64, c), w.input(I32, 4), w.output(F32, 64, c)
    i, count = w.fresh("i"), w.fresh("s")
    n = number
    tests = (f"{n} > 2", f"{n} % 2 == 0", f"{n} > 1 and {n} < 5", f"not ({n} == 3 or {n} == 0)")
    which = w.choose(len(tests))
    x, y = (f"{m.name}[{i} * 16 : {i} * 16 + 16, :]" for m in (source, out))
    w.line(f"{count} = pl.min(pl.max(pl.cast(pl.tensor.read({sizes.name}, [1]), pl.INDEX), 0), 4)")
    w.line(f"if {tests[which]}:\n    for {i} in pl.spmd(4):\n        {y} = pl.neg({x})")
    w.line(f"else:\n    for {i} in pl.parallel(4):\n        {AT}\n            {y} = pl.add({x}, 1.0)")
    w.line(f"for {i} in pl.spmd({count}):\n    {y} = pl.mul({y}, 2.0)")

    def fn(env: Env) -> Tensor:
        n, x = env.numbers[number], env.memory[source.name]
        y = -x if (n > 2, n % 2 == 0, 1 < n < 5, n not in (0, 3))[which] else x + 1
        rows = 16 * int(env.memory[sizes.name][1].clamp(0, 4))
        return torch.cat([y[:rows] * 2, y[rows:]])

    w.finished(out, Facts(8.0, 0.0, 2), fn, readable=True)


# ------------------------------------------------------------------------------------------ pages
def paged_stage(w: Writer, layout: Layout) -> None:
    """Ragged lengths over pages that a table names: sums and maxima, or attention with a running softmax."""
    batch, pages, page, d = w.pick((2, 3)), 3, 16, 32
    attention, dtype = w.chance(60), w.pick((F32, BF16))
    cache, table, lengths = (
        w.input(dtype, batch * pages * page, d), w.input(I32, batch * pages), w.input(I32, batch),
    )  # fmt: skip
    _remake(w, table, lambda extents, g: torch.randperm(batch * pages, generator=g).int())
    _remake(w, lengths, lambda extents, g: _ragged(batch, pages * page, g))
    q, out = w.input(dtype, batch * 16, d), w.output(F32, batch * 16, d)
    split = attention and w.chance(50)
    more = ", optimizations=[pl.split(pl.SplitMode.UP_DOWN)]" if split else ""
    loop = w.pick(("pl.range({})", "pl.pipeline({}, stage=2)")).format(f"(length + {page - 1}) // {page}")
    before, trip, after = (_attention if attention else _sums)(w, dtype)
    names = {
        "cache": cache.name, "q": q.name, "out": out.name, "page": page, "d": d,
    }  # fmt: skip
    w.line(f"for b in pl.spmd({batch}{more}):")
    w.depth += 1
    w.line(f"length = pl.cast(pl.tensor.read({lengths.name}, [b]), pl.INDEX)")
    w.line(before.format(**names))
    w.line(f"for j in {loop}:")
    w.depth += 1
    w.line(f"at = pl.cast(pl.tensor.read({table.name}, [b * {pages} + j]), pl.INDEX) * {page}")
    w.line(f"live = pl.min({page}, length - j * {page})")
    w.line(trip.format(**names))
    w.depth -= 1
    w.line(after.format(**names))
    w.depth -= 1

    def fn(env: Env) -> Tensor:
        x = env.memory[cache.name].reshape(batch * pages, page, d)
        found = []
        for b in range(batch):
            n = int(env.memory[lengths.name][b])
            keys = x[env.memory[table.name].reshape(batch, pages)[b].long()].reshape(-1, d)[:n].float()
            query = env.memory[q.name][b * 16 : b * 16 + 16].float()
            result = torch.zeros(16, d)
            if attention and n:
                result = (query @ keys.T * 0.25).softmax(-1) @ keys
            elif not attention:
                result[0] = keys.sum(0)
                result[1] = torch.cat([keys, torch.full((1, d), -100.0)]).amax(0)
            found.append(result)
        return torch.cat(found)

    tol = 0.0 if not attention else 1e-4 if dtype == F32 else 3e-2
    w.finished(out, Facts(128.0, tol, None if tol else 2), fn, readable=tol == 0.0)


def _sums(w: Writer, dtype: torch.dtype) -> tuple[str, str, str]:
    """The lines before the loop over the pages, of a trip, and after it."""
    return (
        "acc = pl.full([1, {d}], pl.FP32, 0.0)\ntop = pl.full([1, {d}], pl.FP32, -100.0)",
        "tile = pl.cast(pl.slice({cache}, [{page}, {d}], [at, 0], valid_shape=[live, {d}]), pl.FP32)\n"
        "acc = pl.add(acc, pl.col_sum(tile))\n"
        "top = pl.maximum(top, pl.col_max(tile))",
        "both = pl.full([16, {d}], pl.FP32, 0.0)\n"
        "pl.assemble(both, acc, [0, 0])\n"
        "pl.assemble(both, top, [1, 0])\n"
        "pl.assemble({out}, both, [b * 16, 0])",
    )


def _attention(w: Writer, dtype: torch.dtype) -> tuple[str, str, str]:
    weights = "p" if dtype == F32 else 'pl.cast(p, pl.BF16, mode="rint")'
    return (
        "query = pl.slice({q}, [16, {d}], [b * 16, 0])\n"
        "top = pl.full([16, 1], pl.FP32, -1e30)\n"
        "total = pl.full([16, 1], pl.FP32, 0.0)\n"
        "acc = pl.full([16, {d}], pl.FP32, 0.0)",
        # The whole page takes part in the products; what is not live is masked between them
        "keys = pl.slice({cache}, [{page}, {d}], [at, 0])\n"
        "scores = pl.mul(pl.matmul(query, keys, out_dtype=pl.FP32, b_trans=True), 0.25)\n"
        "scores = pl.fillpad(pl.set_validshape(scores, 16, live), pad_value=pl.PadValue.min)\n"
        "new = pl.maximum(pl.row_max(scores), top)\n"
        "p = pl.exp(pl.row_expand_sub(scores, new))\n"
        "scale = pl.exp(pl.sub(top, new))\n"
        "total = pl.add(pl.mul(total, scale), pl.row_sum(p))\n"
        f"part = pl.matmul({weights}, keys, out_dtype=pl.FP32)\n"
        "acc = pl.add(pl.row_expand_mul(acc, scale), part)\n"
        "top = new",
        "if length > 0:\n"
        "    pl.assemble({out}, pl.row_expand_div(acc, total), [b * 16, 0])\n"
        "else:\n"
        "    pl.assemble({out}, acc, [b * 16, 0])",
    )


def _ragged(n: int, most: int, generator: torch.Generator) -> Tensor:
    """Lengths from 0 to ``most``, one of them the largest."""
    x = torch.randint(0, most + 1, (n,), generator=generator)
    x[0] = most
    return x.int()


def _remake(w: Writer, m: Memory, make: Make) -> None:
    """Other values for a parameter, which then nothing else takes for numbers of any kind."""
    m.readable = False
    w.parameters[m.name] = replace(w.parameters[m.name], make=make)


# ------------------------------------------------------------------------------------------ task ids
def task_stage(w: Writer, layout: Layout) -> None:
    """Regions ordered by task ids: deps=, arrays of ids, join nodes; in a manual scope or not."""
    n, parts, manual = w.pick(layout.columns), w.pick((2, 3)), w.chance(50)
    middle, final = w.output(F32, parts * 16, n), w.output(F32, parts * 16, n)
    source = w.input(F32, parts * 16, n)
    ids, u, tid, a, last, i, c = (w.fresh(x) for x in ("tids", "u", "tid", "a", "tid", "i", "a"))
    depth = w.depth
    if manual or w.chance(40):
        w.line("with pl.manual_scope():" if manual else "with pl.scope():")
        w.depth += 1
    w.line(f"{ids} = pl.array.create({parts}, pl.TASK_ID)")
    w.line(f"for {u} in pl.{w.pick(('unroll', 'parallel'))}({parts}):")
    w.line(f"    with pl.at(level=pl.Level.CORE_GROUP) as {tid}:")
    w.line(f"        {a} = pl.slice({source.name}, [16, {n}], [{u} * 16, 0])")
    w.line(f"        pl.assemble({middle.name}, pl.add({a}, pl.cast({u}, pl.FP32)), [{u} * 16, 0])")
    w.line(f"    {ids}[{u}] = {tid}")
    each = ", ".join(f"{ids}[{k}]" for k in range(parts))
    deps = w.pick((f"[{ids}[k] for k in range({parts})]", f"[{ids}]", ids, f"[{each}]"))
    if w.chance(50):
        joined = w.fresh("tid")
        w.line(f"{joined} = pl.system.task_dummy(deps={deps})")
        deps = f"[{joined}]"
    if w.chance(50):
        w.line(f"with pl.spmd({parts}, deps={deps}) as {last}:\n    {i} = pl.tile.get_block_idx()")
    else:
        w.line(f"with pl.at(level=pl.Level.CORE_GROUP, deps={deps}) as {last}:")
        w.line(f"    for {i} in pl.range({parts}):")
        w.depth += 1
    start = f"({parts - 1} - {i}) * 16"  # the last part first
    w.line(f"    {c} = {middle.name}[{start} : {start} + 16, 0:{n}]")
    w.line(f"    pl.assemble({final.name}, pl.mul({c}, 2.0), [{i} * 16, 0])")
    w.depth = depth

    def numbered(env: Env) -> Tensor:
        x = env.memory[source.name].reshape(parts, 16, n)
        return (x + torch.arange(parts).float()[:, None, None]).reshape(parts * 16, n)

    w.finished(middle, Facts(8.0, 0.0, 2), numbered)
    # The run time looks neither into a manual scope nor out of it
    w.finished(
        final, Facts(16.0, 0.0, 2),
        lambda env: 2 * numbered(env).reshape(parts, 16, n).flip(0).reshape(parts * 16, n), not manual,
    )  # fmt: skip
