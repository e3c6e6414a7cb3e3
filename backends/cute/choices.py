"""Tensors that a condition or a loop chooses: the kernel holds their address in a variable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pypto_models.ir.expr import Const, Var
from pypto_models.ir.nodes import Carried, For, If
from pypto_models.ir.types import TensorType

from ..gpu.choices import ANYWHERE, chosen_view
from ..gpu.tensors import View, view_dtype
from .addresses import start_of
from .scalars import DSL_TYPES

if TYPE_CHECKING:
    from .kernel import Kernel


def address(k: Kernel, view: View) -> str:
    """Where a view starts, in bytes, as Int64."""
    pointer = k.pointer(view.base)
    return f"({pointer} + ({start_of(view, k.write)})).toint()" if view.offsets else f"{pointer}.toint()"


def name_tensor(k: Kernel, result: Var, where: str, view: View) -> None:
    """``result`` is ``view``, whose address the variable ``where`` holds."""
    dtype = view_dtype(view)
    align = dtype.bytes if view.offsets else 16
    call = f"cute.make_ptr({DSL_TYPES[dtype.name]}, {where}, cute.AddressSpace.gmem, assumed_align={align})"
    k.chosen[result] = k.text.let(result.name, call)
    k.views[result] = view


def merge(k: Kernel, s: If, head: int, ends: list[int]) -> None:
    """The tensors that an ``if`` chooses; it stands at line ``head``, and its branches end at ``ends``."""
    t = k.text
    late: list[tuple[int, str]] = []
    chosen: list[tuple[Var, str, View]] = []
    for m in s.merged:
        if not isinstance(m.result.type, TensorType):
            continue
        then, orelse = k.view_of(m.then), k.view_of(m.orelse)
        if then == orelse:
            k.views[m.result] = then
            continue
        where = t.unique(f"{m.result.name}_at")
        margin = "    " * t.depth
        late.append((head, f"{margin}{where} = Int64(0)"))
        for end, view in zip(ends, (then, orelse), strict=True):
            late.append((end, f"{margin}    {where} = {address(k, view)}"))
        chosen.append((m.result, where, chosen_view(m.result, (then, orelse), s)))
    for at, line in sorted(late, key=lambda x: -x[0]):
        t.lines.insert(at, line)
    for result, where, view in chosen:
        name_tensor(k, result, where, view)


@dataclass(frozen=True)
class Slot:
    """A tensor that a loop carries: ``where`` is the variable with its address."""

    carried: Carried
    where: str
    view: View

    @staticmethod
    def open(k: Kernel, c: Carried) -> Slot:
        """Before the loop."""
        init = k.view_of(c.init)
        where = k.text.let(f"{c.param.name}_at", address(k, init))
        k.carried.append(where)
        k.views[c.param] = view = View(c.param, init.shape, init.strides, ((ANYWHERE, Const(1)),))
        return Slot(c, where, view)

    def enter(self, k: Kernel) -> None:
        """At the start of a trip."""
        name_tensor(k, self.carried.param, self.where, self.view)

    def next(self, k: Kernel, s: For) -> str:
        """At the end of a trip: the next address."""
        after = k.view_of(self.carried.next)
        chosen_view(self.carried.param, (self.view, after), s)
        return k.text.let("next_at", address(k, after))

    def leave(self, k: Kernel) -> None:
        """Behind the loop."""
        k.carried.remove(self.where)
        view = View(self.carried.result, self.view.shape, self.view.strides, self.view.offsets)
        name_tensor(k, self.carried.result, self.where, view)
