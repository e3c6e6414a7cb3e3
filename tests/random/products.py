"""Matrix products: K loops in every spelling, single products of tiles, and products of computed tiles."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .blocks import Blocks, gather, product
from .body import Body, dtype_name
from .facts import Facts
from .writer import BF16, F16, F32, I8, I32, Env, Memory, Tile


def _facts(a: Facts, b: Facts, k: int) -> Facts:
    return a.times(b).summed(k)


def k_loop(b: Body) -> bool:
    """One or two accumulators over a loop of K, operands streamed from global memory."""
    w, p = b.w, b.place
    if not b.cube:
        return False
    dtype = w.pick((F32, BF16, F16, I8) if w.wild else (F32, BF16, F32, I8 if p.tn % 32 == 0 else BF16))
    tk = 32
    tail = w.chance(25) and not b.layout.dynamic or w.chance(10)
    k = w.pick((64, 96, 32)) + (8 if tail else 0)
    a_trans = w.chance(15) and dtype != I8 and p.vr is None and b.layout.rows.constant is not None
    twins = 2 if w.chance(20) else 1
    b_trans = [w.chance(40) for _ in range(twins)]
    rows = b.layout.rows
    if a_trans:
        lhs = w.declare([w.const(k), rows], dtype, [str(k), b.layout.row_text], prefix="w")
    else:
        lhs = b.source("rows", k, (dtype,))
    rhs = []
    for trans in b_trans:
        dims = [p.n, k] if trans else [k, p.n]
        rhs.append(w.declare([w.const(d) for d in dims], dtype, [str(d) for d in dims], prefix="w"))
    _loop(b, lhs, rhs, k, tk, dtype, a_trans, b_trans)
    return True


def _loop(
    b: Body, lhs: Memory, rhs: Sequence[Memory], k: int, tk: int, dtype: torch.dtype, a_trans: bool,
    b_trans: Sequence[bool],
) -> None:  # fmt: skip
    w, p = b.w, b.place
    acc_type = F32 if dtype.is_floating_point else I32
    trips = -(-k // tk)
    form = w.choose(5)
    names = [w.fresh("acc") for _ in rhs]
    by_offset = form == 1
    flags = ["".join([", a_trans=True" if a_trans else "", ", b_trans=True" if t else ""]) for t in b_trans]
    out = f", out_dtype={dtype_name(acc_type)}"

    def operands(at: str, trip: str | None) -> list[tuple[str, str]]:
        """Lines that load the operands at K offset ``at``; their names."""
        live = ""
        if k % tk:
            if trip is None:
                live = str(min(tk, k))
            else:
                live = w.fresh("n")
                w.line(f"{live} = pl.min({tk}, {k} - {at})")

        def slice_(m: Memory, shape: list[int], offset: list[str], valid: list[str | None]) -> str:
            name = w.fresh("b")
            extra = ""
            if any(v is not None for v in valid):
                shown = ", ".join(v or str(s) for v, s in zip(valid, shape, strict=True))
                extra = f", valid_shape=[{shown}]"
            w.line(f"{name} = pl.slice({m.name}, {shape}, [{', '.join(offset)}]{extra})")
            return name

        kv = live or None
        vr, vc = (p.vr.text if p.vr else None), (p.vc.text if p.vc else None)
        if a_trans:
            x = slice_(lhs, [tk, p.tm], [at, p.r0.text], [kv, vr])
        else:
            x = slice_(lhs, [p.tm, tk], [p.r0.text, at], [vr, kv])
        found = []
        for m, trans in zip(rhs, b_trans, strict=True):
            if trans:
                y = slice_(m, [p.tn, tk], [p.c0.text, at], [vc, kv])
            else:
                y = slice_(m, [tk, p.tn], [at, p.c0.text], [kv, vc])
            found.append((x, y))
        return found

    pipeline = w.chance(30)
    kind = f"pl.pipeline({{}}, stage={w.pick((2, 3))})" if pipeline else "pl.range({})"
    if form == 2:  # the first product before the loop
        for name, (x, y), flag in zip(names, operands("0", None if k < tk else "0"), flags, strict=True):
            w.line(f"{name} = pl.matmul({x}, {y}{out}{flag})")
        bounds = f"1, {trips}"
    else:
        for name in names:
            w.line(f"{name} = pl.create_tensor([{p.tm}, {p.tn}], dtype={dtype_name(acc_type)})")
        bounds = f"0, {k}, {tk}" if by_offset else f"{trips}"
    index = w.fresh("k")
    w.line(f"for {index} in {kind.format(bounds)}:")
    with w.indented():
        at = index
        if not by_offset:
            at = w.fresh("k")
            w.line(f"{at} = {index} * {tk}")
        pairs = operands(at, index)
        for name, (x, y), flag in zip(names, pairs, flags, strict=True):
            if form == 2:
                w.line(f"{name} = pl.matmul_acc({name}, {x}, {y}{flag})")
            elif form in (3, 4):
                w.line(f"{name} = pl.matmul_acc({name}, {x}, {y}{flag}, init_cond={index} == 0)")
            else:
                w.line(f"if {index} == 0:")
                w.line(f"    {name} = pl.matmul({x}, {y}{out}{flag})")
                w.line("else:")
                w.line(f"    {name} = pl.matmul_acc({name}, {x}, {y}{flag})")
    for name, m, trans in zip(names, rhs, b_trans, strict=True):
        _result(b, name, lhs, m, k, acc_type, a_trans, trans)


def _result(
    b: Body, name: str, lhs: Memory, rhs: Memory, k: int, acc_type: torch.dtype, a_trans: bool, b_trans: bool
) -> None:
    """The whole product on whole tensors; each block takes its rectangle."""
    p = b.place

    def fn(env: Env) -> Blocks:
        x, y = env.memory[lhs.name], env.memory[rhs.name]
        x, y = (x.t() if a_trans else x), (y.t() if b_trans else y)
        whole = x.double() @ y.double()
        whole = whole.to(acc_type)
        n = b.context.blocks(env)
        at = [o.at(env, b.context).expand(n) for o in (p.r0, p.c0)]
        live = [None if v is None else v.at(env, b.context).expand(n) for v in (p.vr, p.vc)]
        return gather(whole, at, (p.tm, p.tn), live)

    facts = _facts(lhs.facts, rhs.facts, k)
    b.tile(name, (p.tm, p.tn), acc_type, facts, (p.vr, p.vc), fn, home=True)


def tile_product(b: Body) -> bool:
    """A product of tiles in scope: in mixed regions the operands may be computed."""
    if not b.cube:
        return False
    w = b.w
    kinds = (F32, BF16) if not w.wild else (F32, BF16, F16)
    x = b.some(lambda t: t.dtype in kinds and len(t.shape) == 2 and _fits(b, t.shape) and t.valid[1] is None)
    if x is None:
        return False
    x = b.small(x, 16.0)
    trans = w.chance(50)
    k = x.shape[1]
    y = b.some(
        lambda t: t.dtype == x.dtype and len(t.shape) == 2 and _fits(b, t.shape) and t.facts.bound <= 16
        and t.shape[1 if trans else 0] == k and t.valid[1 if trans else 0] is None
    )  # fmt: skip
    if y is None or w.chance(30):
        n = w.pick((16, 32))
        dims = (n, k) if trans else (k, n)
        m = b.source(str(dims[0]), dims[1], (x.dtype,))
        if m.facts.bound > 16:
            return False
        y = b.load(m, dims, (w.const(0), w.const(0)), (None, None))
    out = w.pick((F32, None, BF16)) if x.facts.tol == 0 else F32
    flag = ", b_trans=True" if trans else ""
    shown = f", out_dtype={dtype_name(out)}" if out else ""
    name = b.name()
    w.line(f"{name} = pl.matmul({x.name}, {y.name}{shown}{flag})")
    n = y.shape[0 if trans else 1]
    vy = y.valid[0 if trans else 1]
    a, c = x, y

    def fn(env: Env) -> Blocks:
        left, right = a.at(env, b.context), c.at(env, b.context)
        if trans:
            right = Blocks(right.data.transpose(1, 2), right.valid[::-1])
        data = product(left, right).to(out or a.dtype)
        return Blocks(data, (left.valid[0], right.valid[1]))

    t = b.tile(name, (x.shape[0], n), out or x.dtype, _facts(x.facts, y.facts, k), (x.valid[0], vy), fn)
    if out in (F32, None) and x.dtype == F32 and w.chance(40):
        accumulate(b, t, x, y, trans)
    return True


def accumulate(b: Body, t: Tile, x: Tile, y: Tile, trans: bool) -> None:
    """Another product of the same operands onto an accumulator."""
    w = b.w
    name = b.name()
    w.line(f"{name} = pl.matmul_acc({t.name}, {x.name}, {y.name}{', b_trans=True' if trans else ''})")
    b.tiles.remove(t)
    fn = lambda env: t.at(env, b.context).with_data(2 * b.data(env, t))  # noqa: E731
    b.tile(name, t.shape, t.dtype, t.facts.plus(t.facts), t.valid, fn)


def _fits(b: Body, shape: Sequence[int]) -> bool:
    """Whole fractals, so that scratchpad targets take the product."""
    return b.w.wild or all(d % 16 == 0 for d in shape)
