"""Tensors that a condition or a loop chooses: their address is known to kernels only."""

from __future__ import annotations

from pypto_models.ir.expr import Const, Var
from pypto_models.ir.nodes import For, If
from pypto_models.ir.types import INDEX, ScalarType

from .refusal import Refused
from .tensors import View, multiple_of, view_dtype

ANYWHERE = Var("anywhere", ScalarType(INDEX))  # is 0, but not known to be a multiple of anything


def chosen_view(result: Var, options: tuple[View, ...], s: For | If) -> View:
    """The view of what may be any of ``options``: its base is ``result``, at whose address it starts."""
    first = options[0]
    if any(o.strides != first.strides or o.shape != first.shape for o in options):
        raise Refused(
            s.span, f"the name {result.name}", "it is one of two tensors whose rows lie apart differently",
            "write to one tensor, or choose between whole tensors of one shape",
        )  # fmt: skip
    offsets = () if all(map(aligned, options)) else ((ANYWHERE, Const(1)),)
    return View(result, first.shape, first.strides, offsets)


def aligned(view: View) -> bool:
    """Whether it starts at a multiple of 16 bytes, as far as can be known."""
    per = 16 // view_dtype(view).bytes
    return all(multiple_of(i) * multiple_of(s) % per == 0 for i, s in view.offsets)
