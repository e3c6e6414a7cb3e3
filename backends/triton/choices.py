"""Tensors that a condition or a loop chooses: the kernel holds their pointer in a variable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pypto_models.ir.expr import Const, Var
from pypto_models.ir.nodes import Carried, For, If
from pypto_models.ir.types import TensorType

from ..gpu.choices import ANYWHERE, chosen_view
from ..gpu.tensors import View
from .addresses import start_of

if TYPE_CHECKING:
    from .kernel import Kernel


def pointer_to(k: Kernel, view: View) -> str:
    """Where a view starts."""
    pointer = k.pointer(view.base)
    return f"{pointer} + ({start_of(view, k.scalars)})" if view.offsets else pointer


def name_tensor(k: Kernel, result: Var, pointer: str, view: View) -> None:
    """``result`` is ``view``, whose pointer is in a variable."""
    k.chosen[result] = pointer
    k.views[result] = view


def merge(k: Kernel, s: If, ends: list[int]) -> None:
    """The tensors that an ``if`` chooses; its branches end at the lines ``ends``."""
    t = k.text
    late: list[tuple[int, str]] = []
    for m in s.merged:
        if not isinstance(m.result.type, TensorType):
            continue
        then, orelse = k.view_of(m.then), k.view_of(m.orelse)
        if then == orelse:
            k.views[m.result] = then
            continue
        name = t.unique(m.result.name)
        for end, view in zip(ends, (then, orelse), strict=True):
            late.append((end, "    " * (t.depth + 1) + f"{name} = {pointer_to(k, view)}"))
        name_tensor(k, m.result, name, chosen_view(m.result, (then, orelse), s))
    for at, line in sorted(late, key=lambda x: -x[0]):
        t.lines.insert(at, line)


@dataclass(frozen=True)
class Slot:
    """A tensor that a loop carries: ``where`` is the variable with its pointer."""

    carried: Carried
    where: str
    view: View

    @staticmethod
    def open(k: Kernel, c: Carried) -> Slot:
        """Before the loop."""
        init = k.view_of(c.init)
        where = k.text.let(c.param.name, pointer_to(k, init))
        k.carried.append(where)
        view = View(c.param, init.shape, init.strides, ((ANYWHERE, Const(1)),))
        return Slot(c, where, view)

    def enter(self, k: Kernel) -> None:
        """At the start of a trip."""
        name_tensor(k, self.carried.param, self.where, self.view)

    def next(self, k: Kernel, s: For) -> str:
        """At the end of a trip: the next pointer."""
        after = k.view_of(self.carried.next)
        chosen_view(self.carried.param, (self.view, after), s)
        return pointer_to(k, after)

    def leave(self, k: Kernel) -> None:
        """Behind the loop."""
        k.carried.remove(self.where)
        view = View(self.carried.result, self.view.shape, self.view.strides, self.view.offsets)
        name_tensor(k, self.carried.result, self.where, view)
