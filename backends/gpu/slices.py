"""K of a streamed product cut across CTAs: what a schedule asks for with ``slices``.

The region becomes two.  The first has S times its blocks, and each of these streams a slice of K and leaves
its sums in fp32: in ``[S, accumulators, rows, N]`` of workspace, or, with ``across: red``, added to
``[accumulators, rows, N]``, which a region at the start of the function sets to zero.  The second adds the
slices in the order of K and runs the epilogue, one block for each of the original.  Only ``red`` depends on
the order in which blocks end, so that nobody gets it who has not asked for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from pypto_models.ir.expr import Const, Var, binary, dim_expr, index
from pypto_models.ir.nodes import (
    Bind,
    Block,
    For,
    Function,
    Let,
    Region,
    RegionKind,
    RegionOptions,
    Scope,
    Stmt,
)
from pypto_models.ir.rewrite import walk
from pypto_models.ir.types import FP32, TensorType, TileType
from pypto_models.ir.types import tile as tile_type
from pypto_models.ops import REGISTRY
from pypto_models.schedule.overrides import Override

from .matching import Product, Sliced, match
from .plans import facts
from .unroll import renamed

LINE = 64  # elements of a 128-byte line, the least of a step for a warp along K


def sliced(function: Function, given: Mapping[str, Override]) -> Function:
    """The function with such regions in the place of those whose schedules cut K, where they run once.

    Raises:
        UserError: K cannot be cut like this.
    """
    ahead: list[Stmt] = []
    body = _block(function.body, given, ahead)
    return replace(function, body=(*ahead, *body))


def _block(body: Block, given: Mapping[str, Override], ahead: list[Stmt]) -> Block:
    out: list[Stmt] = []
    for s in body:
        if isinstance(s, Scope):
            s = replace(s, body=_block(s.body, given, ahead))
        elif not isinstance(s, Region):
            _whole(s, given)
        cut = _cut(s, given.get(s.name)) if isinstance(s, Region) else None
        if cut is None:
            out.append(s)
            continue
        ahead += cut.room()
        out += [cut.part(), cut.end()]
    return tuple(out)


def _whole(s: Stmt, given: Mapping[str, Override]) -> None:
    """Refuses to cut what a loop or a condition holds."""
    for region in walk((s,)):
        fixed = given.get(region.name) if isinstance(region, Region) else None
        if fixed is not None and (fixed.number("slices") or 1) > 1 and not fixed.sized:
            why = f"{fixed.region} runs in a loop or under a condition, and K is cut of what runs once"
            raise fixed.error(why, "leave `slices` out")


def _cut(s: Region, given: Override | None) -> _Cut | None:
    """How a region is cut; None for one that stays as it is, or of which the plan says why it cannot be."""
    product = match(s) if given is not None else None
    found = facts(product) if isinstance(product, Product) else None
    if given is None or found is None or not isinstance(product, Product):
        return None
    fixed = given.at(found.rows, found.n, found.k)
    slices = fixed.number("slices") or 1
    if slices == 1:
        if unused := [key for key in ("across", "finish") if fixed.get(key) is not None]:
            why = f"{s.name}: {unused[0]} says what becomes of slices, and K is whole"
            raise given.error(why, "give `slices`, 2 or more")
        return None
    loop = next(x for x in s.body if isinstance(x, For))
    assert isinstance(loop.stop, Const)
    steps = int(loop.stop.value)
    if fixed.get("finish") == "consumer":
        raise given.error(f"{s.name}: no consumer adds the slices", "leave `finish` out: a phase does")
    if steps % slices:
        why = f"{s.name}: its {steps} steps of K are no multiple of {slices} slices"
        divisors = ", ".join(str(n) for n in range(2, steps + 1) if steps % n == 0)
        raise given.error(why, f"choose a divisor: {divisors}" if divisors else "leave `slices` out")
    depth = found.k // slices
    step = fixed.number("step") or LINE * (fixed.number("warps_k") or 1)
    if depth % step:
        why = f"{s.name}: a slice of {depth} elements of K is no multiple of a step of {step}"
        raise given.error(why, "choose fewer slices, or fewer elements for a step")
    return _Cut(s, product, slices, fixed.get("across") == "red")


@dataclass(frozen=True)
class _Cut:
    region: Region
    product: Product
    slices: int
    red: bool

    @cached_property
    def sums(self) -> Var:
        shape = (len(self.product.results) * self.copies * self.product.rows, self.product.slice_columns)
        return Var(f"{self.region.name}_sums", TensorType(shape, FP32))

    @property
    def copies(self) -> int:
        """Of the sums."""
        return 1 if self.red else self.slices

    def room(self) -> list[Stmt]:
        """What goes ahead of all that the function does: room for the sums, and a region that clears them."""
        shape = tuple(index(n) for n in self.sums.type.shape)  # type: ignore[union-attr]
        create = Let((self.sums,), REGISTRY["create"], (shape, FP32, "ND", False, None), self.region.span)
        return [create, self.zero()] if self.red else [create]

    def zero(self) -> Region:
        p, s = self.product, self.region
        block = Var("n", p.block.type)
        tile = Var("zero", tile_type((p.rows, p.width), FP32))
        args = ((index(p.rows), index(p.width)), FP32, Const(0.0, FP32))
        body: list[Stmt] = [Let((tile,), REGISTRY["full"], args, s.span)]
        for a in range(len(p.results)):
            at = (index(a * p.rows), binary("*", block, index(p.width)))
            body.append(Let((), REGISTRY["store"], (self.sums, tile, at, "none"), s.span))
        options = RegionOptions(f"{s.name}_zero")
        return Region(RegionKind.SPMD, block, p.blocks, tuple(body), options, span=s.span)

    def part(self) -> Sliced:
        """A block for each slice of K and each block of the region, slice by slice."""
        p, s = self.product, self.region
        task = Var("task", p.block.type)
        cut = Var("k_slice", p.block.type)
        start = Var("k_start", p.block.type)
        head = (
            Bind(cut, binary("//", task, p.blocks), s.span),
            Bind(p.block, binary("-", task, binary("*", cut, p.blocks)), s.span),
            Bind(start, binary("*", cut, index(p.depth // self.slices)), s.span),
        )
        at = next(i for i, x in enumerate(s.body) if isinstance(x, For))
        loop = s.body[at]
        assert isinstance(loop, For) and isinstance(loop.stop, Const)
        moved = tuple(self.from_start(x, start) for x in loop.body)
        loop = replace(loop, stop=Const(int(loop.stop.value) // self.slices, loop.stop.dtype), body=moved)
        behind = []
        for a, result in enumerate(p.results):
            first = index(a * p.rows)
            if not self.red:
                first = binary("+", binary("*", cut, index(len(p.results) * p.rows)), first)
            offset = (first, binary("*", p.block, index(p.width)))
            how = "add" if self.red else "none"
            behind.append(Let((), REGISTRY["store"], (self.sums, result, offset, how), s.span))
        return Sliced(
            s.kind, task, binary("*", p.blocks, index(self.slices)),
            renamed((*head, *s.body[:at], loop, *behind)),
            replace(s.options, name_hint=s.name), deps=s.deps, unit=s.unit, span=s.span, slices=self.slices,
        )  # fmt: skip

    def from_start(self, s: Stmt, start: Var) -> Stmt:
        p = self.product
        if not isinstance(s, Let) or not any(s is x for x in (p.x, *p.weights)):
            return s
        offset, i = s.arg("offset"), s.op.index("offset")
        assert isinstance(offset, tuple)
        moved = (offset[0], binary("+", start, offset[1]))
        return replace(s, args=(*s.args[:i], moved, *s.args[i + 1 :]))

    def end(self) -> Region:
        """The slices added in order, and the epilogue."""
        p, s = self.product, self.region
        body: list[Stmt] = list(p.before)
        for a, result in enumerate(p.results):
            kind = result.type
            assert isinstance(kind, TileType)
            live = tuple(dim_expr(x) for x in kind.valid if x is not None)
            assert len(live) == len(kind.valid), "match knows the rows and columns of a product"
            valid = None if kind.is_full else live
            total: Var | None = None
            for cut in range(self.copies):
                last = cut == self.copies - 1
                first = index((cut * len(p.results) + a) * p.rows)
                offset = (first, binary("*", p.block, index(p.width)))
                shape = (index(p.rows), index(p.width))
                found = result if total is None and last else Var("part", kind)
                args = (self.sums, shape, offset, valid, None, None, False)
                body.append(Let((found,), REGISTRY["load"], args, s.span))
                if total is not None:
                    both = result if last else Var("both", kind)
                    body.append(Let((both,), REGISTRY["add"], (total, found), s.span))
                    found = both
                total = found
        options = RegionOptions(f"{s.name}_epilogue")
        return Region(
            s.kind, p.block, p.blocks, renamed((*body, *p.epilogue)), options, tid=s.tid, span=s.span
        )
