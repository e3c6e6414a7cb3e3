"""A cheap region moves into the prologues of the regions that read what it makes.

Each block of a reader works out again the one block of the producer that it needs: a launch less, and none
to wait for.  What it reads are then parts of tiles that it has.  Where a branch makes them, it reads what it
has itself written: several blocks write the same values to the same elements of the scratch tensor.

It needs a producer without products and loops that run ahead, which writes scratch tensors alone, each once:
another block could see, or bring back, what came before the last value.  It needs readers behind it that are
no streamed products, in the same block of the program; nothing up to the last of them, and no reader either,
that writes what the producer reads; and every read of a region to lie in the elements of one block of the
producer, the same one for all reads, or for all in a trip of a loop of run-time length, such as that over the
sequences of which a block has a part.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pypto_models.ir.expr import Binary, Const, Expr, Var, binary, free_vars, index, substitute
from pypto_models.ir.nodes import Bind, Block, For, Function, If, Let, LoopKind, Region, Stmt
from pypto_models.ir.rewrite import children, defs, inner_defs, uses, walk, with_children
from pypto_models.ir.types import Dim, TensorType, TileType
from pypto_models.language.effects import roots
from pypto_models.ops import REGISTRY

from .grouping import large, touched
from .matching import Product, match
from .unroll import renamed


def recomputed(function: Function) -> tuple[Function, frozenset[Var]]:
    """The function with cheap producers in the prologues of their readers, and what these then write."""
    moving = _Recompute(function)
    return replace(function, body=moving.block(function.body)), frozenset(moving.moved)


@dataclass(frozen=True)
class Digit:
    """A part of a producer's block index: ``block // n`` ("//"), ``block % n`` ("%"), or all of it ("")."""

    part: str
    n: int = 1


@dataclass(frozen=True)
class Box:
    """The elements that a block writes: of each axis where they begin, a digit times a step, and how many;
    the whole axis where there is no digit.
    """

    digits: tuple[Digit | None, ...]
    steps: tuple[int, ...]
    extents: tuple[int, ...]


class _Recompute:
    def __init__(self, function: Function) -> None:
        self.roots = roots(function)
        self.made = {
            s.result for s in walk(function.body)
            if isinstance(s, Let) and s.op.name == "create" and s.arg("init_value") is None
            and isinstance(s.result.type, TensorType)
        }  # fmt: skip
        self.function = function
        self.moved: set[Var] = set()  # what producers write that now are in prologues

    def block(self, body: Block) -> Block:
        out = [with_children(s, tuple(map(self.block, inner))) if (inner := outer(s)) else s for s in body]
        at = 0
        while at < len(out):
            p = out[at]
            readers = self.readers(p, out) if isinstance(p, Region) else None
            if readers is None:
                at += 1
            else:
                out = [readers.get(i, s) for i, s in enumerate(out) if i != at]
        return tuple(out)

    def readers(self, p: Region, body: list[Stmt]) -> dict[int, Region] | None:
        """The regions that ``p`` moves into, with it, by their places; None if it stays."""
        if p.block is None or p.tid is not None or p.deps or large(p):
            return None
        does = touched(walk((p,)), self.roots)
        begin = next(i for i, s in enumerate(body) if s is p)
        users = [i for i, s in enumerate(body) if s is not p and not self.apart(s, does.writes)]
        if not does.writes or not does.writes <= self.made or not users or users[0] < begin:
            return None
        between = [touched(walk((s,)), self.roots) for s in body[begin + 1 : users[-1] + 1]]
        boxes = written(p)
        if boxes is None or boxes.keys() != does.writes:  # not through views
            return None
        if any(not x.writes.isdisjoint(does.reads) for x in between):
            return None
        if self.elsewhere(does.writes, body):
            return None
        out = {}
        for i in users:
            with_it = together(p, boxes, body[i], first=i == users[0])
            if with_it is None:
                return None
            out[i] = with_it
        self.moved |= does.writes
        return out

    def apart(self, s: Stmt, tensors: frozenset[Var]) -> bool:
        """Whether a statement neither reads nor writes them, nor gives them another name."""
        if isinstance(s, Let) and s.op.name == "create":
            return True
        return tensors.isdisjoint(self.behind(x) for x in uses((s,)))

    def behind(self, v: Var) -> Var:
        names = self.roots.get(v, frozenset((v,)))
        return next(iter(names)) if len(names) == 1 else v

    def elsewhere(self, tensors: frozenset[Var], body: list[Stmt]) -> bool:
        """Whether statements outside of this block use them."""
        here = {id(x) for x in walk(tuple(body))}
        return any(
            id(x) not in here and not isinstance(x, Region | If | For) and not self.apart(x, tensors)
            for x in walk(self.function.body)
        )


def outer(s: Stmt) -> tuple[Block, ...]:
    return () if isinstance(s, Region) else children(s)


# ------------------------------------------------------------------------------------------ what is written
def written(p: Region) -> dict[Var, Box] | None:
    """The elements that a block writes of each tensor; None if they are not found."""
    out: dict[Var, Box] = {}
    env = {s.var: s.value for s in p.body if isinstance(s, Bind)}
    looped = {id(s) for loop in walk(p.body) if isinstance(loop, For) for s in walk(loop.body)}
    for s in walk(p.body):
        if not isinstance(s, Let) or s.op.name not in ("store", "write_tensor"):
            continue
        if s.op.name != "store" or s.arg("atomic") == "add" or id(s) in looped:
            return None
        target, source = s.arg("target"), s.arg("source")
        assert isinstance(target, Var)
        assert isinstance(source, Var) and isinstance(source.type, TileType) and p.block is not None
        box = box_of(tuple(offset(s)), source.type, p.block, env)
        whole = getattr(target.type, "shape", ())
        if box is None or target in out:
            return None
        if any(d is None and n != of for d, n, of in zip(box.digits, box.extents, whole, strict=True)):
            return None
        out[target] = box
    return out or None


def box_of(at: tuple[Expr, ...], t: TileType, block: Var, env: dict[Var, Expr]) -> Box | None:
    digits: list[Digit | None] = []
    steps: list[int] = []
    extents: list[int] = []
    for x, valid in zip(at, t.valid, strict=True):
        found = digit(resolved(x, env), block)
        if found is None or not isinstance(valid, int) or (found[0] is not None and valid > found[1]):
            return None
        digits.append(found[0])
        steps.append(found[1])
        extents.append(valid)
    return Box(tuple(digits), tuple(steps), tuple(extents))


def resolved(x: Expr, env: dict[Var, Expr]) -> Expr:
    while any(v in env for v in free_vars(x)):
        x = substitute(x, env)
    return x


def digit(x: Expr, block: Var) -> tuple[Digit | None, int] | None:
    """``x`` as a digit of the block index times a constant; (None, 0) for zero, None for anything else."""
    if x == index(0):
        return None, 0
    if x is block:
        return Digit(""), 1
    if isinstance(x, Binary) and isinstance(x.rhs, Const):
        n = int(x.rhs.value)
        if x.op in ("//", "%") and x.lhs is block:
            return Digit(x.op, n), 1
        inner = digit(x.lhs, block) if x.op == "*" else None
        if inner is not None and inner[0] is not None and n > 0:
            return inner[0], inner[1] * n
    return None


# --------------------------------------------------------------------------------------------- what is read
def needed(boxes: dict[Var, Box], c: Region) -> Expr | None:
    """The one block of the producer whose elements a block of ``c`` reads; None if it is not one."""
    digits: dict[Digit, Expr] = {}
    env = {s.var: s.value for s in walk(c.body) if isinstance(s, Bind)}
    for s in walk(c.body):
        if not isinstance(s, Let) or boxes.keys().isdisjoint(x for x in s.args if isinstance(x, Var)):
            continue
        if s.op.name != "load" or s.args[0] not in boxes or s.arg("clamp"):
            return None  # a clamped load may lie in no block at all
        box = boxes[s.args[0]]
        for found, valid, d, step, extent in zip(
            offset(s), valids(s), box.digits, box.steps, box.extents, strict=True
        ):
            if d is None:
                continue
            x = resolved(found, env)
            at = quotient(x, step) or (part(x, step) if valid == 1 else None)
            if at is None or not isinstance(valid, int) or valid > extent or digits.setdefault(d, at) != at:
                return None
    if set(digits) == {Digit("")}:
        return digits[Digit("")]
    parts = {d.part: (d.n, x) for d, x in digits.items()}
    if len(digits) != 2 or set(parts) != {"//", "%"} or parts["//"][0] != parts["%"][0]:
        return None
    n, high = parts["//"]
    return binary("+", binary("*", high, index(n)), parts["%"][1])


def offset(s: Let) -> tuple[Expr, ...]:
    return tuple(index(x) for x in s.arg("offset"))  # type: ignore[union-attr, arg-type]


def valids(s: Let) -> tuple[Dim | Expr, ...]:
    limits = s.arg("valid_shape")
    found = limits if isinstance(limits, tuple) else s.arg("shape")
    return tuple(int(x.value) if isinstance(x, Const) else x for x in found)  # type: ignore[union-attr, misc]


def quotient(x: Expr, n: int) -> Expr | None:
    """``x / n`` where that is a whole expression."""
    if n == 1:
        return x
    if isinstance(x, Const):
        return index(int(x.value) // n) if int(x.value) % n == 0 else None
    if isinstance(x, Binary) and x.op == "*" and isinstance(x.rhs, Const) and int(x.rhs.value) % n == 0:
        return binary("*", x.lhs, index(int(x.rhs.value) // n))
    return None


def part(x: Expr, n: int) -> Expr | None:
    """``a`` where ``x`` is ``a * n + b % n``: one element of the ``a``-th ``n``."""
    if not isinstance(x, Binary) or x.op != "+" or not isinstance(x.rhs, Binary):
        return None
    return quotient(x.lhs, n) if x.rhs.op == "%" and x.rhs.rhs == index(n) else None


# ------------------------------------------------------------------------------------------------- together
def together(p: Region, boxes: dict[Var, Box], c: Stmt, first: bool) -> Region | None:
    """Region ``c`` with ``p`` in its prologue, under names of its own if it is not the ``first``."""
    if not isinstance(c, Region) or c.block is None or isinstance(match(c), Product):
        return None
    block = needed(boxes, c)
    if block is None:
        return None
    assert p.block is not None
    own = (Bind(p.block, block, p.span), *p.body)
    env = {s.var: s.value for s in walk(c.body) if isinstance(s, Bind)}
    body = inlined(c.body, boxes, own if first else renamed(own), block, env)
    return None if body is None else replace(c, body=unread(body, frozenset(boxes)))


def inlined(
    body: Block, boxes: dict[Var, Box], own: Block, block: Expr, env: dict[Var, Expr]
) -> Block | None:
    """``body`` with ``own`` ahead of its first read of the tensors: as far inside of branches as possible, in
    each arm that reads, and inside of a loop if only its trips know what ``block`` needs.  None if that is
    not known where it would stand.
    """
    reading = [i for i, s in enumerate(body) if not boxes.keys().isdisjoint(uses((s,)))]
    if not reading:
        return body
    at = reading[0]
    s = body[at]
    if len(reading) == 1 and isinstance(s, If):
        then = inlined(s.then, boxes, own, block, env)
        orelse = inlined(s.orelse, boxes, renamed(own), block, env)
        if then is None or orelse is None:
            return None
        return (*body[:at], replace(s, then=then, orelse=orelse), *body[at + 1 :])
    if all(isinstance(body[i], If) for i in reading):  # it may be that no block of the producer is meant
        return None
    late = {v for x in walk(body[at:]) for v in (*defs(x), *inner_defs(x))}
    if not late.isdisjoint(free_vars(block)):
        if not isinstance(s, For) or not repeats(s):
            return None
        inner = inlined(s.body, boxes, own, block, env)
        return None if inner is None else (*body[:at], replace(s, body=inner), *body[at + 1 :])
    return (*body[:at], *own, *forwarded(own, body[at:], boxes, env))


def repeats(s: For) -> bool:
    """Whether the trips of a loop may do in turn what blocks of the producer do side by side: they are not
    known to be several, and no loads run ahead of them.
    """
    constant = all(isinstance(x, Const) for x in (s.start, s.stop, s.step))
    return s.kind is LoopKind.RANGE and not constant


# ------------------------------------------------------------------------------------------------ forwarding
def forwarded(own: Block, body: Block, boxes: dict[Var, Box], env: dict[Var, Expr]) -> Block:
    """``body`` behind ``own``, with parts of the tiles that ``own`` stores in place of loads of them."""
    stored = {s.arg("target"): s.arg("source") for s in own if isinstance(s, Let) and s.op.name == "store"}

    def one(s: Stmt) -> Stmt:
        if not isinstance(s, Let):
            return with_children(s, tuple(tuple(map(one, inner)) for inner in children(s)))
        tile = stored.get(s.args[0]) if s.op.name == "load" else None
        if tile is None:
            return s
        box = boxes[s.args[0]]  # type: ignore[index]
        axes = zip(offset(s), box.digits, box.steps, strict=True)
        starts = tuple(start_in(x, d, step, env) for x, d, step in axes)
        _, shape, _, *rest = s.args
        return replace(s, op=REGISTRY["extract"], args=(tile, shape, starts, *rest))

    return tuple(map(one, body))


def start_in(x: Expr, d: Digit | None, step: int, env: dict[Var, Expr]) -> Expr:
    """Where on an axis a load at ``x`` begins in the box of the block that it reads from: see ``needed``."""
    if d is None:
        return x
    found = resolved(x, env)
    if quotient(found, step) is not None:
        return index(0)
    assert isinstance(found, Binary)
    return found.rhs


def unread(body: Block, tensors: frozenset[Var]) -> Block:
    """``body`` without its stores to those of the tensors that it does not read."""
    read = {s.args[0] for s in walk(body) if isinstance(s, Let) and s.op.name == "load"}

    def kept(block: Block) -> Block:
        return tuple(
            with_children(s, tuple(map(kept, children(s))))
            for s in block
            if not (isinstance(s, Let) and s.op.name == "store" and s.args[0] in tensors - read)
        )

    return kept(body)
