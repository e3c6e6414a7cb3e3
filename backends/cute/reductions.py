"""Reductions and products: the ops for which threads work together."""

from __future__ import annotations

from dataclasses import replace

from pypto_models.ir.expr import index
from pypto_models.ir.nodes import Let
from pypto_models.ir.types import FP32, INT32, DType

from . import rules
from .columns import column_statistic, combine, start_of
from .handlers import handles, result_type
from .kernel import Kernel
from .layouts import THREADS, WARPS, Columns, Dealt, Fragment, Rows
from .places import offset
from .rules import unsupported
from .scalars import DSL_TYPES, literal
from .text import BARRIER
from .tiles import Tile, as_type
from .turns import product


def _reduce(k: Kernel, s: Let) -> None:
    t, x, out = k.text, k.tile(s.args[0]), result_type(s)
    axis, how = rules.REDUCE[s.op.name]
    if len(x.shape) != 2:
        raise unsupported(s, "a reduction of a tile that has not two axes")
    wide = FP32 if x.dtype.is_float else x.dtype
    kind = DSL_TYPES[wide.name]
    if isinstance(k.plan.of(s.result), Rows) and isinstance(x.layout, Fragment):
        k.tiles[s.result] = row_statistic(k, s, x, x.layout, how)
        return
    if isinstance(k.plan.of(s.result), Columns) and isinstance(x.layout, Dealt):
        k.tiles[s.result] = column_statistic(k, s, x, x.layout, how)
        return
    dealt = (
        x.layout
        if isinstance(x.layout, Dealt) and x.layout.rows == 1 and axis == 1 and how != "argmax"
        else None
    )
    if dealt is None:
        x = k.free(x, "summand")
    rows, cols = x.shape
    alone = rows == 1 and axis == 1 and how != "argmax"  # one number, which every thread then knows
    chain = k.chains.behind.get(id(s), ())
    last = chain[-1] if chain else s
    made = result_type(last)
    place = None if alone else k.place(last.result.name, made.shape, made.dtype)
    t.part()
    began = len(t.lines)
    if axis == 0:
        assert place is not None
        c = t.unique("c")
        with t.nested(f"for {c} in cutlass.range(tid, {cols}, {THREADS}, unroll=1):"):
            total = t.let("total", start_of(how, wide))
            r = t.unique("r")
            with t.nested(f"for {r} in cutlass.range(0, Int32({x.valid[0]}), unroll=1):"):
                value = f"{kind}({x.value(t, (r, c))})"
                t.line(f"{total} = {combine(how, total, value)}")
            t.line(f"block.element({place.name}, {c})[0] = {as_type(total, wide, out.dtype)}")
        valid = ("1", x.valid[1])
    else:
        per_row = "warp" if rows > 1 else "block"
        lanes, first = (32, "lane") if per_row == "warp" else (THREADS, "tid")
        r = t.unique("r")
        alone_value: list[str] = []
        head = (
            f"for {r} in cutlass.range(warp, Int32({x.valid[0]}), {WARPS}, unroll=1):"
            if per_row == "warp"
            else None
        )

        def body(row: str) -> None:
            total = t.let("total", start_of(how, wide))
            where = t.let("where", "Int32(2147483647)") if how == "argmax" else ""
            if dealt is not None:
                with k.fragments(dealt) as (_, at):
                    value = f"{kind}({x.value(t, at)})"
                    if x.valid[1] == str(cols):
                        t.line(f"{total} = {combine(how, total, value)}")
                    else:
                        with t.nested(f"if {at[1]} < {x.valid[1]}:"):
                            t.line(f"{total} = {combine(how, total, value)}")
                finish(row, total, where)
                return
            c = t.unique("c")
            with t.nested(f"for {c} in cutlass.range({first}, Int32({x.valid[1]}), {lanes}, unroll=4):"):
                value = t.let("value", f"{kind}({x.value(t, (row, c))})")
                if how == "argmax":
                    with t.nested(f"if {value} > {total}:"):
                        t.line(f"{total} = {value}")
                        t.line(f"{where} = Int32({c})")
                else:
                    t.line(f"{total} = {combine(how, total, value)}")
            finish(row, total, where)

        def finish(row: str, total: str, where: str) -> None:
            if how == "argmax":
                t.line(f"{total}, {where} = block.warp_argmax({total}, {where})")
            else:
                t.line(f"{total} = block.warp_{how}({total})")
            if per_row == "block":
                part = t.unique("part")
                k.buffers.add(part, wide, WARPS)
                spot = ""
                if how == "argmax":
                    spot = t.unique("spot")
                    k.buffers.add(spot, INT32, WARPS)
                with t.nested("if lane == 0:"):
                    t.line(f"block.element({part}, warp)[0] = {total}")
                    if spot:
                        t.line(f"block.element({spot}, warp)[0] = {where}")
                t.line(BARRIER)
                t.line(f"{total} = block.element({part}, 0)[0]")
                if spot:
                    t.line(f"{where} = block.element({spot}, 0)[0]")
                w = t.unique("w")
                with t.nested(f"for {w} in cutlass.range_constexpr(1, {WARPS}):"):
                    other = t.let("other", f"block.element({part}, {w})[0]")
                    if spot:
                        at = t.let("at", f"block.element({spot}, {w})[0]")
                        t.line(f"{total}, {where} = block.better({total}, {where}, {other}, {at})")
                    else:
                        t.line(f"{total} = {combine(how, total, other)}")
            if place is None:
                alone_value.append(as_type(total, wide, out.dtype))
                return
            with t.nested("if lane == 0:" if per_row == "warp" else "if tid == 0:"):
                result = where if how == "argmax" else as_type(total, wide, out.dtype)
                if chain:
                    result = behind(result, row)
                t.line(f"block.element({place.name}, {row if row != '0' else 0})[0] = {result}")

        def behind(result: str, row: str) -> str:
            """The element of a row that follows from the row's result."""
            k.tiles[s.result] = Tile(out.shape, out.dtype, (x.valid[0], "1"), lambda text, at: result)
            for r in chain:
                k.handlers[r.op.name](k, r)
            return k.tiles[last.result].value(t, (row, "0"))

        if head is None:
            body("0")
        else:
            with t.nested(head):
                body(r)
        valid = (x.valid[0], "1")
        if place is None:
            (total,) = alone_value
            live = k.static_valid(out, valid)
            k.tiles[s.result] = Tile(out.shape, out.dtype, live, lambda text, at: total, uniform=True)
            return
    k.chains.end(t, began, place.name)
    k.tiles[last.result] = k.from_shared(place, made.shape, k.static_valid(made, valid))


def row_statistic(k: Kernel, s: Let, x: Tile, layout: Fragment, how: str) -> Tile:
    """Row sums or extremes of fragments: over a thread's own columns, its quad, then the warps in order."""
    t = k.text
    name = s.result.name
    own = k.registers(f"{name}_own", FP32, (layout.rows, 1), layout.rows_beside, start_of(how, FP32))
    with k.fragments(layout) as (i, c):
        spot = f"{own.registers}[{layout.row_of(i)}]"
        step = (
            f"{spot} = {combine(how, spot, f'Float32({x.value(t, c)})')}"
            if x.valid[1] == str(x.shape[1])
            else ""
        )
        if step:
            t.line(step)
        else:
            with t.nested(f"if {c[1]} < {x.valid[1]}:"):
                t.line(f"{spot} = {combine(how, spot, f'Float32({x.value(t, c)})')}")
    if layout.warps == 1:
        with k.fragments(layout.rows_beside) as (i, _):
            t.line(f"{own.registers}[{i}] = block.quad_{how}({own.registers}[{i}])")
        return replace(own, valid=(x.valid[0], "1"))
    parts = t.unique(f"{name}_parts")
    k.buffers.add(parts, FP32, layout.rows * WARPS)
    t.part()
    with k.fragments(layout.rows_beside) as (i, c):
        total = t.let("total", f"block.quad_{how}({own.registers}[{i}])")
        with t.nested("if lane % 4 == 0:"):
            t.line(f"block.element({parts}, {c[0]} * {WARPS} + warp)[0] = {total}")
    t.line(BARRIER)
    out = k.registers(name, FP32, (layout.rows, 1), layout.rows_beside)
    with k.fragments(layout.rows_beside) as (i, c):
        total = t.let("total", f"block.element({parts}, {c[0]} * {WARPS})[0]")
        for w in range(1, min(WARPS, layout.columns // 8)):
            t.line(f"{total} = {combine(how, total, f'block.element({parts}, {c[0]} * {WARPS} + {w})[0]')}")
        t.line(f"{out.registers}[{i}] = {total}")
    return replace(out, valid=(x.valid[0], "1"))


handles(*rules.REDUCE)(_reduce)


# ---------------------------------------------------------------------------------------------- products
@handles("matmul", "matmul_acc")
def _matmul(k: Kernel, s: Let) -> None:
    t, out = k.text, result_type(s)
    accumulates = s.op.name == "matmul_acc"
    if not out.dtype.is_float and out.dtype != INT32:
        raise unsupported(s, f"a product of type {out.dtype}")
    begins = s.arg("init_cond") if accumulates else None  # where true, the sums start from zero
    anew = None if begins is None else f"Boolean({k.write(index(begins))})"  # type: ignore[arg-type]
    layout = k.plan.of(s.result)
    if isinstance(layout, Fragment) and layout.warps == 1:
        k.tiles[s.result] = narrowed(product(k, s, layout), out.dtype)
        return
    a, b = k.keep(s.arg("lhs")), k.keep(s.arg("rhs"))
    if s.arg("a_trans"):
        a = k.stored(turned(a), "turned")
    b_trans = bool(s.arg("b_trans"))
    m, n = out.shape
    depth = a.shape[1]
    assert a.shared is not None and b.shared is not None
    valid = k.static_valid(out, (a.valid[0], b.valid[0] if b_trans else b.valid[1]))
    pair = f"{a.shared.name}, {a.shared.pitch}, {b.shared.name}, {b.shared.pitch}, {b_trans}"
    if layout is not None:
        start = "" if accumulates else "Float32(0.0)"
        sums = k.registers(s.result.name, FP32, out.shape, layout, start)
        if accumulates:
            acc = k.tile(s.arg("acc"))
            acc = acc if acc.layout in (None, layout) else k.stored(acc, "acc")
            with k.fragments(layout) as (i, c):
                t.line(f"{sums.registers}[{i}] = {acc.value(t, c)}")
            if anew is not None:
                with t.nested(f"if {anew}:"):
                    t.line(f"{sums.registers}.fill(Float32(0.0))")
        t.line(f"block.mma_fragments({pair}, {sums.registers}, {m}, {n}, {depth})")
        k.tiles[s.result] = narrowed(replace(sums, valid=valid), out.dtype)
        return
    wide = FP32 if out.dtype.is_float else INT32
    place = k.place(s.result.name, out.shape, wide)
    if accumulates:
        k.fill(k.tile(s.arg("acc")), place, s.result)
    if anew is not None:
        with t.nested(f"if {anew}:"), k.elements(out.shape) as at:
            where = offset(at, out.shape, place.pitch)
            t.line(f"block.element({place.name}, {where})[0] = {literal(0.0 if wide == FP32 else 0, wide)}")
    t.line(BARRIER)
    t.line(
        f"block.scalar_product({pair}, {place.name}, {place.pitch}, {m}, {n}, {depth}, {accumulates}, "
        f"{DSL_TYPES[wide.name]})"
    )
    t.line(BARRIER)
    k.tiles[s.result] = narrowed(k.from_shared(place, out.shape, valid), out.dtype)


def turned(x: Tile) -> Tile:
    """Rows as columns."""
    (rows, columns), (live_rows, live_columns) = x.shape, x.valid
    return Tile(
        (columns, rows), x.dtype, (live_columns, live_rows), lambda t, c: x.value(t, (c[1], c[0])),
        reads=x.reads,
    )  # fmt: skip


def narrowed(tile: Tile, dtype: DType) -> Tile:
    """The tile in another type, rounded where it is read."""
    if tile.dtype == dtype:
        return tile
    return Tile(
        tile.shape, dtype, tile.valid, lambda t, c: as_type(tile.value(t, c), tile.dtype, dtype),
        layout=tile.layout,
    )  # fmt: skip
