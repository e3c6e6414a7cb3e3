"""What a region touches in global memory: boxes of buffers as functions of the grid and the loops.

Needs: :class:`~.affine.Definitions` of the function.  Gives: :class:`~..ir.graph.Access` records.

A tensor variable is resolved through views and reshapes to the buffer behind it, a parameter or the result of
``create``; a reference that a loop carries or a branch chooses may stand for several, and gives one record
for each.  A reshape maps a box to a box wherever the axes allow, to a box around it (``exact=False``) where
rows are torn, and to the whole buffer where extents are known at run time only; the record says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import TypeAlias

from ..errors import InternalError
from ..ir.expr import Binary, Const, Expr, Var, as_dim, binary, free_vars, index
from ..ir.graph import Access, Affine, AxisIndex
from ..ir.nodes import Block, For, If, Let, Region
from ..ir.rewrite import arg_exprs
from ..ir.types import Dim, TensorType
from ..ops import OpDef
from ..ops.registry import Access as OpAccess
from .affine import Definitions


@dataclass(frozen=True)
class Reference:
    """A buffer and the views (``view``, ``view_reshape`` Lets) that lead from it to a variable."""

    root: Var
    views: tuple[Let, ...] = ()
    lags: tuple[tuple[Var, int | None], ...] = ()
    moved: str = ""


def references(d: Definitions, v: Var, open_: frozenset[Var] = frozenset()) -> tuple[Reference, ...]:
    """The buffers that a tensor variable may stand for.

    ``open_`` holds the carried references being resolved: one of them comes back as its own root.
    """
    if v in open_:
        return (Reference(v),)
    if v in d.carried:
        return _carried(d, v, open_)
    if v in d.merged:
        merged = d.merged[v][1]
        sides = [references(d, x, open_) for x in (merged.then, merged.orelse) if isinstance(x, Var)]
        return tuple(dict.fromkeys(r for side in sides for r in side))
    let = d.lets.get(v)
    if let is not None and isinstance(let.op, OpDef) and let.op.alias is not None:
        base = let.arg(let.op.alias)
        if not isinstance(base, Var):
            raise InternalError(f"{let.op.name} at {let.span} is a view of no tensor")
        return tuple(replace(r, views=(*r.views, let)) for r in references(d, base, open_))
    return (Reference(v),)


def _carried(d: Definitions, v: Var, open_: frozenset[Var]) -> tuple[Reference, ...]:
    loop, c = d.carried[v]
    if not isinstance(c.init, Var) or not isinstance(c.next, Var):
        raise InternalError(f"the loop at {loop.span} carries a tensor that is no variable")
    nexts = references(d, c.next, open_ | {c.param})
    own = [r for r in nexts if r.root is c.param]
    found = list(references(d, c.init, open_))
    for r in nexts:
        if r.root is not c.param:
            made_inside = v is c.param and loop.var in _loops_of(d, r.root)
            lag = None if own else 1  # with `own`, a trip may pass the reference on unchanged
            found.append(replace(r, lags=(*r.lags, (loop.var, lag))) if made_inside else r)
    if any(r.views for r in own):
        found = [replace(r, moved=f"each trip of {loop.var.name} moves the reference") for r in found]
    return tuple(dict.fromkeys(found))


def _loops_of(d: Definitions, v: Var) -> tuple[Var, ...]:
    return d.homes[v].loops if v in d.homes else ()


# ------------------------------------------------------------------------------------------------ boxes
@dataclass(frozen=True)
class _Span:
    """``[start, start + extent)`` on one axis; ``limit`` bounds the extent, ``exact`` as in AxisIndex."""

    start: Affine
    extent: Affine
    limit: int | None
    exact: bool = True


_Box: TypeAlias = tuple[_Span, ...]


def _whole(dim: Dim, d: Definitions) -> _Span:
    return _Span(Affine(), d.affine(dim), dim if isinstance(dim, int) else None)


def _through_view(d: Definitions, view: Let, box: _Box) -> _Box:
    """The box in the axes of the tensor that ``view`` was taken of."""
    offset, drop = view.arg("offset"), view.arg("drop_dims")
    if not isinstance(offset, tuple):
        raise InternalError(f"the view at {view.span} has no offset")
    axes = drop if isinstance(drop, tuple) else ()
    dropped = {x.value if isinstance(x, Const) else x for x in axes}
    spans, given = [], iter(box)
    for axis, start in enumerate(offset):
        base = d.affine(start)
        if axis in dropped:
            spans.append(_Span(base, Affine((), 1), 1))
        else:
            s = next(given)
            spans.append(replace(s, start=base + s.start))
    return tuple(spans)


def _factors(dims: tuple[Dim, ...]) -> tuple[int, tuple[str, ...]]:
    """A product of extents as a number and run-time factors, so that products can be compared."""
    number, symbols = 1, []
    todo: list[Dim] = list(dims)
    while todo:
        dim = todo.pop()
        if isinstance(dim, int):
            number *= dim
        elif isinstance(dim, Binary) and dim.op == "*":
            todo += [as_dim(dim.lhs), as_dim(dim.rhs)]
        else:
            symbols.append(repr(dim))
    return number, tuple(sorted(symbols))


Group = tuple[tuple[int, ...], tuple[int, ...]]


def regroup(old: tuple[Dim, ...], new: tuple[Dim, ...]) -> tuple[Group, ...] | None:
    """The finest runs of axes of two row-major shapes that hold the same elements; None if there are none.

    ``[T, 1024]`` and ``[T, 8, 128]`` give ``((0,), (0,)), ((1,), (1, 2))``.
    """
    groups: list[Group] = []
    i = j = 0
    while i < len(old) and j < len(new):
        a, b = i + 1, j + 1
        while _factors(old[i:a]) != _factors(new[j:b]):
            left, right = _factors(old[i:a]), _factors(new[j:b])
            grow_old = len(left[1]) < len(right[1]) or (len(left[1]) == len(right[1]) and left[0] < right[0])
            if grow_old and a < len(old):
                a += 1
            elif not grow_old and b < len(new):
                b += 1
            else:
                return None
        groups.append((tuple(range(i, a)), tuple(range(j, b))))
        i, j = a, b
    if any(x != 1 for x in (*old[i:], *new[j:])):
        return None
    if groups and (i < len(old) or j < len(new)):  # trailing axes of extent 1
        last = groups.pop()
        groups.append((last[0] + tuple(range(i, len(old))), last[1] + tuple(range(j, len(new)))))
    return tuple(groups)


def _linear(spans: tuple[_Span, ...], dims: tuple[Dim, ...]) -> tuple[_Span, bool] | None:
    """A box as a range of row-major element numbers, and whether it fills that range."""
    if any(not isinstance(n, int) for n in dims[1:]):
        return None
    strides = [prod(int(n) for n in dims[k + 1 :] if isinstance(n, int)) for k in range(len(dims))]
    start = Affine()
    for s, stride in zip(spans, strides, strict=True):
        start = start + s.start * stride
    lead = next((k for k, s in enumerate(spans) if s.limit != 1), len(spans) - 1)
    rest = zip(spans[lead + 1 :], dims[lead + 1 :], strict=True)
    if all(s.start == Affine() and s.extent.dim() == n for s, n in rest):
        s, stride = spans[lead], strides[lead]
        return _Span(start, s.extent * stride, None if s.limit is None else s.limit * stride), True
    extent, limit = Affine((), 1), 1
    for s, stride in zip(spans, strides, strict=True):
        extent = extent + (s.extent - 1) * stride
        limit = -1 if s.limit is None or limit < 0 else limit + (s.limit - 1) * stride
    return _Span(start, extent, limit if limit > 0 else None), False


def _unlinear(d: Definitions, s: _Span, dims: tuple[Dim, ...]) -> tuple[list[_Span], bool] | None:
    """A range of element numbers as a box of the axes ``dims`` that holds it, and whether they are equal."""
    if len(dims) == 1:
        return [s], True
    if any(not isinstance(n, int) for n in dims[1:]):
        return None
    inner = prod(int(n) for n in dims[1:] if isinstance(n, int))
    rest = [_whole(n, d) for n in dims[1:]]
    start, extent = s.start.divided(inner), s.extent.divided(inner)
    if start is not None and extent is not None:
        limit = None if s.limit is None else -(-s.limit // inner)
        return [_Span(start, extent, limit), *rest], True
    row = d.affine(binary("//", s.start.expr(), index(inner)))
    column = d.affine(binary("%", s.start.expr(), index(inner)))
    _, last = d.bounds(column)
    if s.limit is not None and last is not None and last + s.limit <= inner:  # inside of one row
        below = _unlinear(d, replace(s, start=column), dims[1:])
        return None if below is None else ([_Span(row, Affine((), 1), 1), *below[0]], below[1])
    if s.limit is None:
        return None
    rows = (s.limit + inner - 2) // inner + 1
    return [_Span(row, Affine((), rows), rows), *rest], False


def _through_reshape(d: Definitions, view: Let, box: _Box) -> _Box | None:
    base = view.args[0]
    if not isinstance(base, Var) or not isinstance(base.type, TensorType):
        raise InternalError(f"the reshape at {view.span} is a view of no tensor")
    old, new = base.type.shape, view.result.type.shape if isinstance(view.result.type, TensorType) else ()
    spans: list[_Span] = []
    groups = regroup(old, new)
    for olds, news in groups if groups is not None else ((tuple(range(len(old))), tuple(range(len(new)))),):
        inside, dims = tuple(box[k] for k in news), tuple(old[k] for k in olds)
        if len(olds) == len(news) == 1:
            spans.append(inside[0])
            continue
        flat = _linear(inside, tuple(new[k] for k in news))
        found = None if flat is None else _unlinear(d, flat[0], dims)
        if flat is None or found is None:
            return None
        whole = flat[1] and found[1] and all(s.exact for s in inside)
        spans += [replace(s, exact=whole) for s in found[0]]
    return tuple(spans)


# ---------------------------------------------------------------------------------------------- records
def resolve(d: Definitions, a: OpAccess, let: Let, loops: tuple[Var, ...], always: bool) -> Iterator[Access]:
    """The records of one access of an op: one for each buffer that its tensor may stand for."""
    refs = references(d, a.tensor)
    touched = tuple(s if v is None else v for s, v in zip(a.shape, a.valid, strict=True))
    box = tuple(
        _Span(d.affine(o), d.affine(n), _limit(t, n), v is not None)
        for o, n, t, v in zip(a.offset, touched, a.shape, a.valid, strict=True)
    )
    limits = map(_limit, a.shape, touched)
    tile = tuple(t if n is None else n for t, n in zip(a.shape, limits, strict=True))
    for ref in refs:
        record = Access(
            ref.root, a.effect.value, (), tile, let.op.name, let.span, loops=loops,
            always=always and len(refs) == 1, lags=ref.lags, why=ref.moved,
        )  # fmt: skip
        yield record if ref.moved else _locate(d, record, ref, box)


def _limit(tile: Dim, touched: Dim) -> int | None:
    """The most elements that may be touched on an axis."""
    return touched if isinstance(touched, int) else tile if isinstance(tile, int) else None


def _locate(d: Definitions, record: Access, ref: Reference, box: _Box) -> Access:
    """Fill in the index of a record by taking the box back through the views."""
    tables: list[Var] = []
    for view in reversed(ref.views):
        tables += [t for s in box for t in d.tables(s.start)]
        through = _through_view(d, view, box) if view.op.name == "view" else _through_reshape(d, view, box)
        if through is None:
            why = f"the reshape on line {view.span.line} mixes axes whose extents are known at run time only"
            return replace(record, tables=tuple(dict.fromkeys(tables)), why=why)
        box = through
    tables += [t for s in box for t in d.tables(s.start)]
    shape = ref.root.type.shape if isinstance(ref.root.type, TensorType) else ()
    indices = tuple(_axis(d, s, extent) for s, extent in zip(box, shape, strict=True))
    return replace(record, index=indices, tables=tuple(dict.fromkeys(tables)))


def _axis(d: Definitions, s: _Span, extent: Dim) -> AxisIndex:
    low, high = d.bounds(s.start)
    ends = [d.bounds(s.start + s.extent)[1], extent if isinstance(extent, int) else None]
    if high is not None and s.limit is not None:
        ends.append(high + s.limit)
    known = [e for e in ends if e is not None]
    hull = (max(low or 0, 0), min(known) if known else None)
    return AxisIndex(s.start, s.extent.dim(), s.limit, hull, s.exact)


def region_accesses(d: Definitions, region: Region) -> tuple[Access, ...]:
    """Every access of a region to global memory, in program order."""
    return tuple(_block_accesses(d, region.body, (), True))


def _block_accesses(d: Definitions, block: Block, loops: tuple[Var, ...], always: bool) -> Iterator[Access]:
    for s in block:
        if isinstance(s, Let) and isinstance(s.op, OpDef):
            for a in s.op.access(s):
                yield from resolve(d, a, s, loops, always)
        elif isinstance(s, For):
            yield from _block_accesses(d, s.body, (*loops, s.var), always)
        elif isinstance(s, If):
            yield from _block_accesses(d, s.then, loops, False)
            yield from _block_accesses(d, s.orelse, loops, False)


def launch_accesses(d: Definitions, values: tuple[Expr, ...]) -> tuple[Access, ...]:
    """Elements that the orchestration reads to know ``values``: scalars, loop bounds, grid extents."""
    return tuple(
        replace(record, launch=True)
        for let in _launch_reads(d, values)
        if isinstance(let.op, OpDef)
        for a in let.op.access(let)
        for record in resolve(d, a, let, (), True)
    )


def _launch_reads(d: Definitions, values: tuple[Expr, ...]) -> list[Let]:
    """The ``read_tensor`` Lets outside of regions that values depend on, in order of discovery."""
    reads: list[Let] = []
    seen: set[Var] = set()
    todo = [v for x in values for v in free_vars(x)]
    while todo:
        v = todo.pop(0)
        if v in seen:
            continue
        seen.add(v)
        if v in d.binds:
            todo += free_vars(d.binds[v])
        elif v in d.carried:
            todo += [w for x in (d.carried[v][1].init, d.carried[v][1].next) for w in free_vars(x)]
        elif v in d.merged:
            merged = d.merged[v]
            todo += [w for x in (merged[0].cond, merged[1].then, merged[1].orelse) for w in free_vars(x)]
        elif v in d.lets and not isinstance(v.type, TensorType) and d.homes[v].region is None:
            reads.append(d.lets[v])
            todo += [w for a in d.lets[v].args for x in arg_exprs(a) for w in free_vars(x)]
    return reads
