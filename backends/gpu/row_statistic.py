"""A norm between two streamed products, without a kernel of its own.

RMSNorm scales every row of its operand by a statistic of the row.  Where a streamed product makes that
operand and another one takes the result, the region in between goes: the producer adds up the statistic
over the columns that each CTA has in its epilogue, and leaves one partial sum per row and CTA; the consumer
adds the partial sums in fixed order, and applies the elementwise rest to the fragments of its operand.
Every element is rounded where the region rounds it; only the order of the sum differs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pypto_models.ir.expr import Expr, Var, dim_expr, index
from pypto_models.ir.nodes import Arg, Block, Function, Let, Region, Scope, Stmt
from pypto_models.ir.rewrite import operands, walk
from pypto_models.ir.types import BF16, FP32, TensorType, TileType

from .matching import LAZY, Product
from .plans import Plan

Products = Callable[[Region], "Product | None"]
"""The streamed product that a region will be, if it will be one."""


@dataclass(frozen=True)
class RowStatistic:
    """A region that writes ``result`` = f(row, statistic(row), columns) for each row of a tensor."""

    region: Region
    source: Var  # the tensor with the rows
    target: Var  # what it writes
    row: Let  # the load of a row
    columns: Let | None  # the load of a row that all share, such as the norm's weight
    term: tuple[Let, ...]  # from the row to what is summed
    total: Let  # the sum
    scale: tuple[Let, ...]  # from the sum to ``scales``
    scales: tuple[Var, ...]  # of a row
    apply: tuple[Let, ...]  # from the row, its scales and the columns to ``result``
    result: Var


@dataclass(frozen=True)
class Fused:
    """What becomes of such a region: ``producer`` leaves partial sums of it, ``consumer`` applies it."""

    statistic: RowStatistic
    producer: Region
    consumer: Region


def fused(function: Function, constants: frozenset[Var], product: Products) -> tuple[Fused, ...]:
    """The regions of a function that can go; ``constants`` are the tensors that no region writes."""
    regions = [s for s in top(function.body) if isinstance(s, Region)]
    inner = set(map(id, regions))
    created = {s.result for s in top(function.body) if isinstance(s, Let) and s.op.name == "create"}
    out: list[Fused] = []
    for region in regions:
        found = row_statistic(region)
        if found is None or not {found.source, found.target} <= created:
            continue
        if found.columns is not None and found.columns.args[0] not in constants:
            continue
        writes, reads = users(function.body, found.source), users(function.body, found.target)
        producer = only(w for w in writes if any(stores(x, found.source) for x in walk(w.body)))
        consumer = only(r for r in reads if r is not region)
        if producer is None or consumer is None or not {id(producer), id(consumer)} <= inner:
            continue
        order = [regions.index(producer), regions.index(region), regions.index(consumer)]
        made, taken = product(producer), product(consumer)
        if made is None or taken is None or order != sorted(order):
            continue
        uses = [x for x in walk(consumer.body) if found.target in names(x)]
        if uses == [taken.x] and fits(found, taken, made):
            out.append(Fused(found, producer, consumer))
    return tuple(out)


def fits(s: RowStatistic, taken: Product, made: Product) -> bool:
    """Whether producer, rows and consumer speak of the same rows, each once."""
    kind = s.source.type
    assert isinstance(kind, TensorType)
    limits = taken.x.arg("valid_shape")
    rows = dim_expr(kind.shape[0])
    stored = [x for x in made.epilogue if isinstance(x, Let) and stores(x, s.source)]
    return (
        s.region.count == rows
        and isinstance(limits, tuple)
        and limits[0] == rows
        and taken.depth == kind.shape[1]
        and [x.arg("offset")[0] for x in stored] == [index(0)]  # type: ignore[index]
        and made.rows == taken.rows
    )


def top(body: Block) -> Iterable[Stmt]:
    """The statements that run once and always."""
    for s in body:
        if isinstance(s, Scope):
            yield from top(s.body)
        else:
            yield s


def users(body: Block, tensor: Var) -> list[Region]:
    """The regions that name a tensor; none, if a loop, a condition or a view names it too."""
    out: list[Region] = []
    for s in top(body):
        if isinstance(s, Region):
            if any(tensor in names(x) for x in walk(s.body)):
                out.append(s)
        elif any(tensor in names(x) for x in walk((s,))):
            return []
    return out


def names(s: Stmt) -> set[Expr]:
    return {x for x in operands(s) if isinstance(x, Var)}


def stores(s: Stmt, tensor: Var) -> bool:
    return isinstance(s, Let) and s.op.name == "store" and s.arg("target") is tensor


def only(regions: Iterable[Region]) -> Region | None:
    found = list(regions)
    return found[0] if len(found) == 1 else None


def norm_bytes(s: RowStatistic, plan: Plan) -> int:
    """Shared memory that the consumer needs for it: its columns in each stage, and the scales of the rows."""
    columns = 0 if s.columns is None else plan.stages * plan.chunk * s.columns.result.type.dtype.bytes  # type: ignore[union-attr]
    return up(columns) + up(4 * 16 * plan.m_tiles * len(s.scales))


def up(size: int) -> int:
    return -(-size // 128) * 128


def row_statistic(region: Region) -> RowStatistic | None:
    """The region as a norm of rows, one block each; None if it is something else."""
    lets = [s for s in region.body if isinstance(s, Let)]
    if region.block is None or len(lets) != len(region.body) or lets[-1].op.name != "store":
        return None
    store = lets.pop()
    loads = [s for s in lets if s.op.name == "load"]
    sums = [s for s in lets if s.op.name == "row_sum"]
    own = [s for s in loads if is_row(s, region.block)]
    shared = [s for s in loads if is_row(s, index(0))]
    if (len(sums), len(own), len(shared)) not in ((1, 1, 0), (1, 1, 1)) or len(loads) > 1 + len(shared):
        return None
    if any(s.op.name not in LAZY for s in lets if s not in sums):
        return None
    row, total = own[0], sums[0]
    target, result = store.arg("target"), store.arg("source")
    if store.arg("offset") != (region.block, index(0)):
        return None
    if not isinstance(target, Var) or not isinstance(result, Var) or extents(result) != extents(row.result):
        return None
    made = {s.result: s for s in lets if s.op.name not in ("load", "row_sum")}
    term = needed(made, total.args[0])
    after = needed(made, result)
    scale = tuple(s for s in after if extents(s.result) == (1, 1))
    apply = tuple(s for s in after if s not in scale)
    ends = (total.result, *(s.result for s in scale))
    scales = tuple(v for v in ends if any(v in names(s) for s in apply))
    columns = next((s for s in shared if s.result in leaves(apply)), None)
    known = {row.result, *(() if columns is None else (columns.result,))}
    if not leaves(term) <= {row.result} or not leaves(scale) <= {total.result}:
        return None
    if not leaves(apply) <= {*known, *ends} or row.result not in leaves(apply):
        return None
    tensors = (row.args[0], target)
    if any(v.type.dtype != BF16 for v in tensors) or any(v.type.dtype != FP32 for v in ends):  # type: ignore[union-attr]
        return None
    return RowStatistic(region, row.args[0], target, row, columns, term, total, scale, scales, apply, result)  # type: ignore[arg-type]


def extents(v: Var) -> tuple[int, ...]:
    assert isinstance(v.type, TileType)
    return v.type.shape


def is_row(load: Let, at: Expr) -> bool:
    """Whether it loads all of the row ``at`` of a tensor."""
    kind = load.args[0].type  # type: ignore[union-attr]
    if not isinstance(kind, TensorType) or len(kind.shape) != 2:
        return False
    whole = (index(1), dim_expr(kind.shape[1]))
    return (
        load.arg("shape") == whole
        and load.arg("offset") == (at, index(0))
        and load.arg("valid_shape") in (None, whole)
        and not load.arg("drop_dims")
        and not load.arg("pad_value")
    )


def needed(made: Mapping[Var, Let], x: Arg) -> tuple[Let, ...]:
    """The statements of ``made`` that a value depends on, in order."""
    wanted = {x}
    for v, s in reversed(tuple(made.items())):
        if v in wanted:
            wanted |= names(s)
    return tuple(s for v, s in made.items() if v in wanted)


def leaves(body: tuple[Let, ...]) -> set[Expr]:
    """What the statements read and do not make."""
    return {x for s in body for x in names(s)} - {s.result for s in body}
