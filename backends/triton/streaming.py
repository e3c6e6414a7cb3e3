"""A streamed product as a kernel: weights past the rows of the batch, then the region's epilogue.

A block of the GPU owns a run of columns of the result, dealt out one by one so that the shares differ by one
at most, and for each of them a weight row of every accumulator.  The source's block is only a unit of
meaning: what the region says of its column c in its block n is evaluated at the block and column of each
column of the run, as values along them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pypto_models.ir.expr import Const, Expr, Var
from pypto_models.ir.nodes import Arg, Block, Let
from pypto_models.ir.rewrite import walk
from pypto_models.ir.types import TileType

from ..gpu.matching import Product
from ..gpu.tensors import View
from .addresses import start_of
from .forms import Form
from .handlers import HANDLERS
from .kernel import Kernel, Tile
from .pads import LEAST, power

LINE = 64  # two-byte elements of a line of memory
COLUMN, BLOCK = "c", "n"  # of a column of the run: its column in its block of the source, and that block


class Run(Kernel):
    """A kernel whose tiles have the columns of a run where the region's have those of a block."""

    def __init__(
        self, views: Mapping[Var, View], alias: Mapping[Var, frozenset[Var]], product: Product, form: Form
    ) -> None:
        super().__init__(views, HANDLERS, alias)
        self.text.taken |= {"cta", "first", "end", "column", COLUMN, BLOCK, "k"}
        self.width, self.form = product.width, form
        self.pads = RunPads(product, form)  # type: ignore[assignment]

    def along(self, pads: tuple[int, ...], axis: int) -> str:
        return COLUMN if axis == 1 and pads[1] > 1 else super().along(pads, axis)

    def inside(self, pads: tuple[int, ...], valid: tuple[str, ...]) -> str | None:
        if pads[1] == 1:
            return super().inside(pads, valid)
        rows = super().inside((pads[0], 1), (valid[0], "1"))
        tests = [f"({rows})"] if rows is not None else []
        tests += [f"({COLUMN} < {valid[1]})"] if valid[1] != str(self.width) else []
        tests += [] if self.form.exact else ["(column < end)"]
        return " & ".join(tests) if tests else None


@dataclass(frozen=True)
class RunPads:
    """Extents of the tiles behind the product: rows of the batch, and columns of the run or one."""

    product: Product
    form: Form

    def block(self, body: Block) -> None:
        """The extents follow from the product alone."""

    def of(self, v: Var) -> tuple[int, ...]:
        assert isinstance(v.type, TileType)
        rows, columns = v.type.shape
        return (power(rows) if rows > 1 else 1, self.form.pad if columns == self.product.width else 1)


def refusal(product: Product) -> str | None:
    """Why the epilogue of a product can only run on the blocks of the source, or None."""
    for s in product.epilogue:
        if isinstance(s, Let):
            if s.op.name == "extract":
                return f"line {s.span.line}: it takes a part of the columns"
            shapes = [v.type.shape for v in (*s.results, *s.args) if is_tile(v)]  # type: ignore[union-attr]
            if any(
                len(x) != 2 or x[0] not in (1, product.rows) or x[1] not in (1, product.width) for x in shapes
            ):
                return f"line {s.span.line}: a tile that has not the rows and columns of the product"
    return "its blocks have one column" if product.width == 1 else None


def is_tile(v: Arg) -> bool:
    return isinstance(v, Var) and isinstance(v.type, TileType)


def emit(
    product: Product,
    views: Mapping[Var, View],
    alias: Mapping[Var, frozenset[Var]],
    prelude: Block,
    form: Form,
    begin: str,
    ahead: int,
) -> Kernel:
    """The kernel; ``begin`` is the line at which it waits for the kernels before it.

    Before that it asks for the first ``ahead`` elements of each weight row to be in L2.
    """
    k = Run(views, alias, product, form)
    t = k.text
    reads = any(isinstance(s, Let) and s.op.name == "read_tensor" for s in walk((*prelude, *product.before)))
    if reads:
        t.line(begin)
    t.line("cta = tl.program_id(0)")
    each, more = divmod(form.columns, form.walkers)
    t.line(f"first = cta * {each}" + (f" + tl.minimum(cta, {more})" if more else ""))
    t.line(f"end = first + {each}" + (f" + (cta < {more})" if more else ""))
    for s in prelude:
        k.stmt(s)
    names, natural = dict(k.names), set(k.natural)

    def at_columns(place: str) -> None:
        """What the region knows at each column of the run."""
        k.names = {**names, product.block: BLOCK}
        k.scalars.natural = k.natural = {*natural, product.block}
        t.line(f"column = first + tl.arange(0, {form.pad}){place}")
        there = "column"
        if not form.exact:  # what pads the run stands for the last column, whose block exists
            there = t.let("there", f"tl.minimum(column, {form.columns - 1})")
        t.line(f"{BLOCK} = {there} // {product.width}")
        t.line(f"{COLUMN} = {there} % {product.width}")
        for s in product.before:
            if not (isinstance(s, Let) and s.op.name == "create_tile"):
                k.stmt(s)

    at_columns("[:, None]")
    weights = [weight_rows(k, w, form) for w in product.weights]
    depth = t.let("depth", f"tl.arange(0, {form.step})[None, :]")
    if not reads:
        while ahead > product.depth:
            ahead //= 2
        if ahead >= LINE:
            for pointer, test in weights:
                t.line(f"tile.prefetch({pointer}, {test or 'column >= 0'}, {ahead})")
        t.line(begin)
    rows = power(max(product.rows, LEAST))
    limits = product.x.arg("valid_shape")
    live = k.write(limits[0]) if isinstance(limits, tuple) else str(product.rows)
    x_view = k.view_of(product.x.args[0])
    row = t.let("row", f"tl.arange(0, {rows})[:, None]")
    x_rows = t.let("x_rows", f"{base_of(k, x_view)} + {row} * {pitch_of(x_view)}")
    shape = [form.pad, rows] if form.weights_first else [rows, form.pad]
    accumulators = [t.let("acc", f"tl.zeros({shape}, tl.float32)") for _ in product.results]
    with t.nested(f"for k in tl.range(0, {product.depth}, {form.step}, num_stages={form.stages}):"):
        mask = "" if live == str(rows) else f", mask={row} < {live}, other=0"
        x = t.let("x", f"tl.load({x_rows} + (k + {depth}){mask})")
        for acc, (pointer, test) in zip(accumulators, weights, strict=True):
            mask = f", mask={test}, other=0" if test else ""
            w = t.let("w", f'tl.load({pointer} + (k + {depth}){mask}, eviction_policy="evict_first")')
            sides = f"{w}, tl.trans({x})" if form.weights_first else f"{x}, tl.trans({w})"
            t.line(f"{acc} = tl.dot({sides}, {acc})")
    at_columns("[None, :]")
    for acc, result in zip(accumulators, product.results, strict=True):
        kind = result.type
        assert isinstance(kind, TileType)
        valid = k.static_valid(kind, (live, str(kind.shape[1])))
        name = t.let(result.name, f"tl.trans({acc})") if form.weights_first else acc
        k.tiles[result] = Tile(name, kind.shape, (rows, form.pad), kind.dtype, valid)
    k.block(product.epilogue)
    t.lines[:0] = [f"    {name} = {text}" for text, name in k.axes.items()]
    return k


def weight_rows(k: Run, load: Let, form: Form) -> tuple[str, str | None]:
    """The pointers of the weight rows of the run's columns, and the mask of those that exist."""
    view, at, limits = k.view_of(load.args[0]), load.arg("offset"), load.arg("valid_shape")
    assert isinstance(at, tuple) and isinstance(at[0], Expr)
    first = k.text.let("rows", f"tl.cast({k.write(at[0])} + {COLUMN}, tl.int64)")
    pointer = k.text.let("w_rows", f"{base_of(k, view)} + {first} * {pitch_of(view)}")
    tests = [] if form.exact else ["(column < end)"]
    if isinstance(limits, tuple) and limits[0] != Const(k.width):
        tests.append(f"({COLUMN} < {k.write(limits[0])})")
    return pointer, k.text.let("exists", " & ".join(tests)) if tests else None


def base_of(k: Kernel, view: View) -> str:
    pointer = k.pointer(view.base)
    return f"({pointer} + ({start_of(view, k.scalars)}))" if view.offsets else pointer


def pitch_of(view: View) -> str:
    (pitch, _) = view.strides
    assert isinstance(pitch, Const)
    return str(pitch.value)
