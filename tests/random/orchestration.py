"""Stages about what is around regions: tiles that loops and branches of the orchestration carry, regions under
run-time conditions, grids and loops whose extents are data."""

from __future__ import annotations

import torch

from .blocks import cast
from .body import Body, Layout, Place
from .control import scalar_parameter
from .facts import Facts
from .writer import BF16, F32, I32, NAMES, Env, Memory, Writer

AT = "with pl.at(level=pl.Level.CORE_GROUP):"


def finished(w: Writer, m: Memory, facts: Facts, readable: bool = True) -> None:
    """A stage has written all of ``m``."""
    m.facts, m.stage, m.readable = facts, w.stage, readable
    if m.kind == "scratch":
        w.do(lambda env: env.written[m.name].fill_(True) if m.name in env.written else None)


def number_of(w: Writer, layout: Layout) -> str:
    zero = w.const(0)
    return scalar_parameter(Body(w, layout, w.root, Place(16, 16, 16, zero, zero, None, None)))


def carried_stage(w: Writer, layout: Layout) -> None:
    """A tile that regions in a loop, or in a branch, rebind: it goes through global memory."""
    trips, c = w.pick((2, 3)), w.pick((32, 64))
    dtype = w.pick((F32, I32, BF16))
    source = w.declare([w.const(trips * 16), w.const(c)], dtype, [str(trips * 16), str(c)])
    out = w.scratch([w.const(16), w.const(c)], dtype, ["16", str(c)])
    kind = w.pick(("loop", "branch", "both", "scalar"))
    number = number_of(w, layout) if kind in ("branch", "both") else ""
    acc, i, part = w.fresh("a"), w.fresh("i"), w.fresh("a")
    one = "1.0" if dtype.is_floating_point else "1"
    op = w.pick(("add", "maximum"))
    w.line(AT)
    w.line(f"    {acc} = pl.full([16, {c}], pl.{NAMES[dtype]}, {one})")
    if kind == "scalar":
        count = w.fresh("s")
        w.line(f"    {count} = pl.min(pl.max(pl.cast(pl.read({source.name}, [0, 3]), pl.INT32), 0), {trips})")
    if kind in ("loop", "both", "scalar"):
        w.line(f"for {i} in pl.range({count if kind == 'scalar' else trips}):")
        w.depth += 1
        if kind == "both":
            w.line(f"if {i} < {number}:")
            w.depth += 1
        w.line(AT)
        w.line(f"    {part} = pl.slice({source.name}, [16, {c}], [{i} * 16, 0])")
        w.line(f"    {acc} = pl.{op}({acc}, {part})")
        w.depth -= 2 if kind == "both" else 1
    else:
        w.line(f"if {number} > 2:")
        w.line(f"    {AT}")
        w.line(f"        {acc} = pl.{op}({acc}, {source.name}[0:16, :])")
        if w.chance(50):
            w.line("else:")
            w.line(f"    {AT}")
            w.line(f"        {acc} = pl.{op}({source.name}[0:16, :], {acc})")
            op += "_always"
    w.line(AT)
    w.line(f"    {out.name}[:, :] = pl.abs({acc})")

    def fn(env: Env) -> None:
        x = env.memory[source.name].reshape(trips, 16, c)
        count = {"loop": trips, "branch": 1}.get(kind, 0)
        if kind == "both":
            count = min(trips, int(env.numbers[number]))
        elif kind == "scalar":
            count = int(cast(env.memory[source.name][0:1, 3], I32, "trunc")[0].clamp(0, trips))
        elif kind == "branch" and "always" not in op:
            count = int(env.numbers[number] > 2)
        acc = torch.ones(16, c, dtype=dtype)
        for k in range(count):  # in the program's order: bf16 sums round
            acc = acc + x[k] if op.startswith("add") else torch.maximum(acc, x[k])
        env.memory[out.name] = acc.abs()

    w.do(fn)
    finished(w, out, Facts(32.0, 0.0, 2), readable=False)
    w.features.add("dependent")


def either_stage(w: Writer, layout: Layout) -> None:
    """One of two regions, or of two grids, as a run-time number says; another grid's size is data."""
    c = 32
    number = number_of(w, layout)
    source = w.declare([w.const(64), w.const(c)], F32, ["64", str(c)])
    sizes = w.declare([w.const(4)], I32, ["4"])
    out = w.scratch([w.const(64), w.const(c)], F32, ["64", str(c)])
    i, count, a = w.fresh("i"), w.fresh("s"), w.fresh("a")
    w.line(f"{count} = pl.min(pl.max(pl.cast(pl.tensor.read({sizes.name}, [1]), pl.INDEX), 0), 4)")
    compared = w.pick(
        (
            f"{number} > 2",
            f"{number} % 2 == 0",
            f"{number} > 1 and {number} < 5",
            f"not ({number} == 3 or {number} == 0)",
        )
    )
    body = f"{out.name}[{i} * 16 : {i} * 16 + 16, :] = "
    w.line(f"if {compared}:")
    w.line(f"    for {i} in pl.spmd(4):")
    w.line(f"        {body}pl.neg({source.name}[{i} * 16 : {i} * 16 + 16, :])")
    w.line("else:")
    w.line(f"    for {i} in pl.parallel(4):")
    w.line(f"        {AT}")
    w.line(f"            {body}pl.add({source.name}[{i} * 16 : {i} * 16 + 16, :], 1.0)")
    w.line(f"for {i} in pl.spmd({count}):")
    w.line(f"    {a} = {out.name}[{i} * 16 : {i} * 16 + 16, :]")
    w.line(f"    {out.name}[{i} * 16 : {i} * 16 + 16, :] = {a} * 2.0")

    def fn(env: Env) -> None:
        n, x = int(env.numbers[number]), env.memory[source.name]
        taken = eval(compared, {number: n})  # the language's conditions are Python's
        y = -x if taken else x + 1
        rows = 16 * int(env.memory[sizes.name][1].clamp(0, 4))
        env.memory[out.name] = torch.cat([y[:rows] * 2, y[rows:]])

    w.do(fn)
    finished(w, out, Facts(8.0, 0.0, 2))
    w.features.add("dependent")


def paged_stage(w: Writer, layout: Layout) -> None:
    """Ragged lengths over pages that a table names: a sum and a maximum, or attention with a running softmax."""
    attention = w.chance(60)
    batch, pages, page, d = w.pick((2, 3)), 3, 16, 32
    split = w.pick(("NONE", "UP_DOWN")) if attention else "NONE"
    dtype = w.pick((F32, BF16))
    cache = w.declare([w.const(batch * pages * page), w.const(d)], dtype, [str(batch * pages * page), str(d)])
    table = w.declare([w.const(batch * pages)], I32, [str(batch * pages)])
    shuffle(w, table, batch * pages)
    lengths = w.declare([w.const(batch)], I32, [str(batch)])
    ragged(w, lengths, pages * page)
    q = w.declare([w.const(batch * 16), w.const(d)], dtype, [str(batch * 16), str(d)])
    out = w.scratch([w.const(batch * 16), w.const(d)], F32, [str(batch * 16), str(d)])
    more = f", optimizations=[pl.split(pl.SplitMode.{split})]" if split != "NONE" else ""
    w.line(f"for b in pl.spmd({batch}{more}):")
    w.depth += 1
    w.line(f"length = pl.cast(pl.tensor.read({lengths.name}, [b]), pl.INDEX)")
    if attention:
        w.line(f"query = pl.slice({q.name}, [16, {d}], [b * 16, 0])")
        w.line("top = pl.full([16, 1], pl.FP32, -1e30)")
        w.line("total = pl.full([16, 1], pl.FP32, 0.0)")
        w.line(f"acc = pl.full([16, {d}], pl.FP32, 0.0)")
    else:
        w.line(f"acc = pl.full([1, {d}], pl.FP32, 0.0)")
        w.line(f"top = pl.full([1, {d}], pl.FP32, -100.0)")
    loop = w.pick(("pl.range({})", "pl.pipeline({}, stage=2)")).format(f"(length + {page - 1}) // {page}")
    w.line(f"for j in {loop}:")
    w.depth += 1
    w.line(f"at = pl.cast(pl.tensor.read({table.name}, [b * {pages} + j]), pl.INDEX) * {page}")
    w.line(f"live = pl.min({page}, length - j * {page})")
    live = f"valid_shape=[live, {d}]"
    if attention:
        # The whole page takes part in the products; what is not live is masked between them
        w.line(f"keys = pl.slice({cache.name}, [{page}, {d}], [at, 0])")
        w.line("scores = pl.matmul(query, keys, out_dtype=pl.FP32, b_trans=True)")
        w.line(
            "scores = pl.fillpad(pl.set_validshape(pl.mul(scores, 0.25), 16, live), pad_value=pl.PadValue.min)"
        )
        w.line("new = pl.maximum(pl.row_max(scores), top)")
        w.line("p = pl.exp(pl.row_expand_sub(scores, new))")
        w.line("scale = pl.exp(pl.sub(top, new))")
        w.line("total = pl.add(pl.mul(total, scale), pl.row_sum(p))")
        given = "p" if dtype == F32 else 'pl.cast(p, pl.BF16, mode="rint")'
        w.line(f"part = pl.matmul({given}, keys, out_dtype=pl.FP32)")
        w.line("acc = pl.add(pl.row_expand_mul(acc, scale), part)")
        w.line("top = new")
    else:
        w.line(f"tile = pl.cast(pl.slice({cache.name}, [{page}, {d}], [at, 0], {live}), pl.FP32)")
        w.line("acc = pl.add(acc, pl.col_sum(tile))")
        w.line("top = pl.maximum(top, pl.col_max(tile))")
    w.depth -= 1
    if attention:
        w.line("if length > 0:")
        w.line(f"    pl.assemble({out.name}, pl.row_expand_div(acc, total), [b * 16, 0])")
        w.line("else:")
        w.line(f"    pl.assemble({out.name}, acc, [b * 16, 0])")
        w.features |= {"mixed", "split"} if split != "NONE" else {"mixed"}
    else:
        w.line(f"both = pl.full([16, {d}], pl.FP32, 0.0)")
        w.line("pl.assemble(both, acc, [0, 0])")
        w.line("pl.assemble(both, top, [1, 0])")
        w.line(f"pl.assemble({out.name}, both, [b * 16, 0])")
    w.depth -= 1
    w.features |= {"tail", "paged"}

    def fn(env: Env) -> None:
        x = env.memory[cache.name].reshape(batch * pages, page, d)
        rows = []
        for b in range(batch):
            n = int(env.memory[lengths.name][b])
            order = env.memory[table.name].reshape(batch, pages)[b].long()
            keys = x[order].reshape(-1, d)[:n].float()
            if attention:
                query = env.memory[q.name][b * 16 : b * 16 + 16].float()
                rows.append((query @ keys.T * 0.25).softmax(-1) @ keys if n else torch.zeros(16, d))
            else:
                result = torch.zeros(16, d)
                result[0] = keys.sum(0)
                result[1] = torch.cat([keys, torch.full((1, d), -100.0)]).amax(0)
                rows.append(result)
        env.memory[out.name] = torch.cat(rows)

    w.do(fn)
    tol = 0.0 if not attention else 1e-4 if dtype == F32 else 3e-2
    finished(w, out, Facts(128.0, tol, None if tol else 2), readable=tol == 0.0)


def shuffle(w: Writer, table: Memory, n: int) -> None:
    """The table holds each page once."""
    make = lambda extents, generator: torch.randperm(n, generator=generator).int()  # noqa: E731
    _remake(w, table, make)


def ragged(w: Writer, lengths: Memory, most: int) -> None:
    """Lengths from 0 to ``most``, of which one is the largest."""

    def make(extents: dict[str, int], generator: torch.Generator) -> torch.Tensor:
        n = lengths.shape(Env(extents, {}))[0]
        x = torch.randint(0, most + 1, (n,), generator=generator)
        x[0] = most
        return x.int()

    _remake(w, lengths, make)


def _remake(w: Writer, m: Memory, make: object) -> None:
    from dataclasses import replace

    m.readable = False  # nothing else is to take it for numbers of any kind
    w.parameters[m.name] = replace(w.parameters[m.name], make=make)
