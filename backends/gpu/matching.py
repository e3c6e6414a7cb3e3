"""Which regions are a streamed product: weights past the rows of a batch, then an elementwise epilogue.

The region's block is only a unit of meaning: column c of block n is column ``n * width + c`` of the result,
and any run of columns is a share of the work.  What a block needs for a column, its weight row and the
epilogue's operands, is evaluated at that column's block; so nothing has to be affine.
"""

from __future__ import annotations

from dataclasses import dataclass

from pypto_models.ir.expr import Binary, Const, Expr, Var, as_dim, binary, index
from pypto_models.ir.nodes import Bind, Block, For, If, Let, LoopKind, Region
from pypto_models.ir.types import BF16, FP32, Dim, TileType

UNIT = 8
ROWS = 128  # of the batch, at most
LAZY = frozenset({
    "add", "sub", "mul", "div", "maximum", "minimum", "neg", "abs", "exp", "log", "sqrt", "rsqrt", "recip",
    "cast", "row_expand_add", "row_expand_sub", "row_expand_mul", "row_expand_div", "col_expand_add",
    "col_expand_sub", "col_expand_mul", "col_expand_div", "row_expand", "col_expand", "cmp", "full", "load",
    "move", "store", "set_validshape", "fillpad",
})  # fmt: skip


@dataclass(frozen=True)
class Product:
    """A matched region: ``results[i]`` = rows of ``x`` @ rows of ``weights[i]``, over all of K."""

    block: Var
    blocks: Expr
    width: int  # columns of a block
    depth: int
    rows: int  # of the batch: a multiple of 16
    x: Let
    weights: tuple[Let, ...]
    results: tuple[Var, ...]
    before: Block  # of the region, ahead of the K loop
    epilogue: Block
    slices: int = 1  # of K, ``depth`` elements each: block b has slice b // (blocks / slices)

    @property
    def slice_columns(self) -> int:
        """Of the blocks of one slice; their number is constant."""
        assert isinstance(self.blocks, Const)
        return int(self.blocks.value) // self.slices * self.width


@dataclass(frozen=True)
class Sliced(Region):
    """A region whose blocks have one slice of K after another: what slices.py makes of a product."""

    slices: int = 1


def match(region: Region) -> Product | str:
    """The product, or why the region is none."""
    if region.block is None or region.count is None:
        return "it has no grid"
    loops = [i for i, s in enumerate(region.body) if isinstance(s, For)]
    if len(loops) != 1:
        return "it has not exactly one loop"
    loop = region.body[loops[0]]
    assert isinstance(loop, For)
    before, after = region.body[: loops[0]], region.body[loops[0] + 1 :]
    for s in after:
        if not isinstance(s, Let) or s.op.name not in LAZY:
            what = s.op.name if isinstance(s, Let) else type(s).__name__
            return f"line {s.span.line}: {what} is not elementwise"
    if (
        loop.kind not in (LoopKind.PIPELINE, LoopKind.RANGE)
        or loop.start != index(0)
        or loop.step != index(1)
    ):
        return "its loop does not count from 0 in steps of 1"
    if not isinstance(loop.stop, Const):
        return "its trip count is not constant"
    lets = {r: s for s in loop.body if isinstance(s, Let) for r in s.results}
    products: dict[Var, tuple[Let, Let]] = {}
    for s in loop.body:
        if isinstance(s, If):
            if s.cond != Binary("==", loop.var, Const(0)):
                return f"line {s.span.line}: a condition inside of the loop"
            first = {r: t for t in s.then if isinstance(t, Let) for r in t.results}
            rest = {r: t for t in s.orelse if isinstance(t, Let) for r in t.results}
            for m in s.merged:
                begin, then = first.get(m.then), rest.get(m.orelse)  # type: ignore[call-overload]
                if begin is None or then is None or (begin.op.name, then.op.name) != ("matmul", "matmul_acc"):
                    return f"line {s.span.line}: a branch that is not the start of an accumulator"
                if (begin.arg("lhs"), begin.arg("rhs")) != (then.arg("lhs"), then.arg("rhs")):
                    return f"line {s.span.line}: the first step differs from the others"
                products[m.result] = (begin, then)
        elif not isinstance(s, Let) or s.op.name not in ("load", "move"):
            return f"line {s.span.line}: it does more than load inside of the loop"
    results, weights, rows = [], [], []
    for c in loop.carried:
        if c.next not in products:
            return f"it carries {c.param.name}, which is not an accumulator"
        begin, then = products[c.next]
        if then.arg("acc") is not c.param or begin.arg("a_trans") or not begin.arg("b_trans"):
            return f"line {begin.span.line}: weights that are not [out, in]"
        x, w = (lets.get(begin.arg(n)) for n in ("lhs", "rhs"))  # type: ignore[call-overload]
        if x is None or w is None or x.op.name != "load" or w.op.name != "load":
            return f"line {begin.span.line}: an operand that is not loaded in the loop"
        rows.append(x)
        weights.append(w)
        results.append(c.result)
    if not results or any(x is not rows[0] for x in rows):
        return "its accumulators take different rows"
    x = rows[0]
    xt, wt = x.result.type, weights[0].result.type
    assert isinstance(xt, TileType) and isinstance(wt, TileType)
    if (
        xt.dtype != BF16
        or any(w.result.type.dtype != BF16 for w in weights)
        or any(r.type.dtype != FP32 for r in results)  # type: ignore[union-attr]
    ):
        return "its operands are not bf16 with fp32 sums"
    height, step = xt.shape
    if any(w.result.type.shape != wt.shape for w in weights):
        return "its weight tiles differ in shape"
    if (
        height > ROWS
        or height % 16
        or wt.shape[0] % UNIT
        or any(w.args[0] is not weights[0].args[0] for w in weights)
    ):
        return "its tile is not of 16 to 128 rows, or its weights are in different tensors"
    along: Expr = Binary("*", loop.var, Const(step)) if step != 1 else loop.var
    depth = int(loop.stop.value) * step
    slices = region.slices if isinstance(region, Sliced) else 1
    start = slice_start(before, region, depth) if slices > 1 else None
    if start is not None:
        along = binary("+", start, along)
    for load in (x, *weights):
        at = load.arg("offset")
        if (
            not isinstance(at, tuple)
            or len(at) != 2
            or at[1] != along
            or load.arg("drop_dims")
            or load.arg("pad_value")
        ):
            return f"line {load.span.line}: a load that does not walk the columns"
        base: Dim = load.args[0].type.shape[1]
        if not isinstance(base, int) or base % 8:
            return f"line {load.span.line}: rows of run-time length"
        limits = load.arg("valid_shape")
        if isinstance(limits, tuple) and as_dim(limits[1]) != step:
            return f"line {load.span.line}: a ragged contraction"
    if x.arg("offset")[0] != index(0):
        return "its rows do not start at 0"
    for s in after:
        if isinstance(s, Let) and s.op.name == "store":
            stored = s.arg("source").type  # type: ignore[union-attr]
            if stored.shape != (height, wt.shape[0]):
                return f"line {s.span.line}: it stores a tile of another shape"
            if s.arg("atomic") == "add" and stored.dtype != FP32:
                return f"line {s.span.line}: it adds to what others store, and not in fp32"
    return Product(
        region.block,
        region.count,
        wt.shape[0],
        depth,
        height,
        x,
        tuple(weights),
        tuple(results),
        before,
        after,
        slices,
    )


def slice_start(before: Block, region: Region, depth: int) -> Var | None:
    """The variable of ``block // n * depth``, where the slice of a block begins."""
    binds = {s.var: s.value for s in before if isinstance(s, Bind)}
    for start, value in binds.items():
        if isinstance(value, Binary) and (value.op, value.rhs) == ("*", Const(depth)):
            cut = binds.get(value.lhs) if isinstance(value.lhs, Var) else None
            if isinstance(cut, Binary) and (cut.op, cut.lhs) == ("//", region.block):
                return start
    return None
