"""Edits of the layer's IR: find a statement of a region and change what it means.

An edit names a region and the n-th operation of a kind in it, in program order, in the function that the
front end gives.  The passes then run as for any program, so that a mutant is as legal as the layer itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pypto_models.ir.expr import Const, Expr, Var, binary
from pypto_models.ir.nodes import Bind, Block, For, Function, If, Let, Region, Stmt
from pypto_models.ir.rewrite import Rewriter, rewrite_regions

Change = Callable[[Stmt, dict[Var, Expr]], Stmt | Block]
"""Gives the new statement, or none; may say in the environment what stands for a variable from here on."""


@dataclass(frozen=True)
class Edit:
    """Applies ``change`` to the statement of ``region`` for which ``here`` holds the ``nth`` time."""

    region: str
    here: Callable[[Stmt], bool]
    change: Change
    nth: int = 0


def mutated(function: Function, edits: tuple[Edit, ...]) -> Function:
    """``function`` with all edits; an edit that finds no place is an error of the test."""
    for edit in edits:
        places = []

        def apply(region: Region, edit: Edit = edit, places: list[int] = places) -> Region:
            if region.name != edit.region:
                return region
            editor = _Editor(edit=edit)
            region = replace(region, body=editor.block(region.body))
            places.append(editor.seen)
            return region

        function = replace(function, body=rewrite_regions(function.body, apply))
        if sum(places) <= edit.nth:
            raise LookupError(f"region {edit.region!r} has {sum(places)} such statements, not {edit.nth + 1}")
    return function


@dataclass(kw_only=True)
class _Editor(Rewriter):
    edit: Edit
    seen: int = field(default=0)

    def stmt(self, s: Stmt) -> Stmt | Block:
        hit = self.edit.here(s)
        this = hit and self.seen == self.edit.nth
        self.seen += hit
        new = self.descend(s)
        return self.edit.change(new, self.env) if this else new


# --------------------------------------------------------------------------------------------- edits
def bypass(region: str, op: str, operand: int, nth: int = 0) -> Edit:
    """The result of an op is its operand: the op does nothing."""

    def change(s: Stmt, env: dict[Var, Expr]) -> Stmt | Block:
        assert isinstance(s, Let)
        value = s.args[operand]
        assert isinstance(value, Var) and value.type == s.result.type
        env[s.result] = value
        return ()

    return Edit(region, _is_op(op), change, nth)


def drop_store(region: str, tensor: str, nth: int = 0) -> Edit:
    """A store into ``tensor`` does not happen."""

    def here(s: Stmt) -> bool:
        return _is_op("store")(s) and isinstance(s, Let) and _name(s.args[0]) == tensor

    return Edit(region, here, lambda s, env: (), nth)


def scalar(region: str, name: str, change: Callable[[Expr], Expr], nth: int = 0) -> Edit:
    """A scalar that the source calls ``name`` has another value."""

    def rebind(s: Stmt, env: dict[Var, Expr]) -> Stmt:
        assert isinstance(s, Bind)
        return replace(s, value=change(s.value))

    return Edit(region, lambda s: isinstance(s, Bind) and s.var.name == name, rebind, nth)


def read_as(region: str, tensor: str, change: Callable[[Var, tuple[Expr, ...]], Expr], nth: int = 0) -> Edit:
    """A scalar read of ``tensor`` gives ``change(value, index)``."""

    def here(s: Stmt) -> bool:
        return _is_op("read_tensor")(s) and isinstance(s, Let) and _name(s.args[0]) == tensor

    def rebind(s: Stmt, env: dict[Var, Expr]) -> Stmt:
        assert isinstance(s, Let) and isinstance(s.args[1], tuple)
        env[s.result] = change(s.result, s.args[1])  # type: ignore[arg-type]
        return s

    return Edit(region, here, rebind, nth)


def read_at(region: str, tensor: str, index: Callable[[tuple[Expr, ...]], tuple[Expr, ...]]) -> Edit:
    """A scalar read of ``tensor`` reads from another index."""

    def here(s: Stmt) -> bool:
        return _is_op("read_tensor")(s) and isinstance(s, Let) and _name(s.args[0]) == tensor

    def change(s: Stmt, env: dict[Var, Expr]) -> Stmt:
        assert isinstance(s, Let) and isinstance(s.args[1], tuple)
        return replace(s, args=(s.args[0], index(s.args[1]), *s.args[2:]))  # type: ignore[arg-type]

    return Edit(region, here, change)


def never(region: str, nth: int = 0) -> Edit:
    """The condition of a branch never holds."""

    def change(s: Stmt, env: dict[Var, Expr]) -> Stmt:
        assert isinstance(s, If)
        return replace(s, cond=binary("<", Const(1), Const(0)))

    return Edit(region, lambda s: isinstance(s, If), change, nth)


def loop(region: str, bounds: Callable[[Expr, Expr], tuple[Expr, Expr]], over: str) -> Edit:
    """The loop of ``region`` whose variable is ``over`` runs from and to other bounds."""

    def change(s: Stmt, env: dict[Var, Expr]) -> Stmt:
        assert isinstance(s, For)
        start, stop = bounds(s.start, s.stop)
        return replace(s, start=start, stop=stop)

    return Edit(region, lambda s: isinstance(s, For) and s.var.name == over, change)


# --------------------------------------------------------------------------------------------- bounds
def without_last(start: Expr, stop: Expr) -> tuple[Expr, Expr]:
    return start, binary("-", stop, Const(1))


def first_half(start: Expr, stop: Expr) -> tuple[Expr, Expr]:
    """The larger half, so that something is left of one trip."""
    return start, _middle(binary("+", binary("+", start, stop), Const(1)))


def last_half(start: Expr, stop: Expr) -> tuple[Expr, Expr]:
    return _middle(binary("+", start, stop)), stop


def _middle(total: Expr) -> Expr:
    return binary("//", total, Const(2))


def less_one(x: Expr) -> Expr:
    return binary("-", x, Const(1))


def one_more(x: Expr) -> Expr:
    return binary("+", x, Const(1))


def _is_op(name: str) -> Callable[[Stmt], bool]:
    return lambda s: isinstance(s, Let) and s.op.name == name


def _name(x: object) -> str:
    return x.name if isinstance(x, Var) else ""
