"""What a run would bring along: extents, scalar arguments and the contents of index tensors.

The control flow of a kernel depends on these alone, so with all of them given the walk of the cost model
takes every loop and branch exactly as a run does.  What is missing is assumed, and said:

* a run-time extent or an integer argument is ``DEFAULT_EXTENT``;
* a value read from a tensor without contents is unknown: a loop with unknown bounds makes one trip, an
  unknown condition takes the dearer branch of a region and the first of the orchestration, and ``min`` of an
  unknown and a known value is the known one, its maximum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import NOWHERE, Diag, user_error
from ..ir.expr import Binary, Const, DimVar, Expr, Number, Unary, Var, apply
from ..ir.nodes import Function
from ..ir.rewrite import exits, operands, walk
from ..ir.types import ScalarType, TensorType

DEFAULT_EXTENT = 16

Value = Number | None


@dataclass
class Inputs:
    """``numbers`` by extent or scalar argument, ``data`` by tensor: a number (every element), nested lists,
    or a torch tensor.  ``notes`` collects what had to be assumed, once each, in order.
    """

    numbers: Mapping[str, Number]
    data: Mapping[str, Any]
    notes: dict[str, None] = field(default_factory=dict)

    @staticmethod
    def of(function: Function, given: Mapping[str, Any]) -> Inputs:
        """``given`` by name; raises a user error for a name that the function does not have."""
        tensors = {p.name for p in function.params if isinstance(p.var.type, TensorType)}
        scalars = {p.name for p in function.params if isinstance(p.var.type, ScalarType)}
        extents, known = set(extents_of(function)), known_names(function)
        for name, value in given.items():
            if name not in known:
                raise user_error(
                    Diag.ARGUMENT, NOWHERE, name=name,
                    why="no extent and no parameter of the kernel is called so",
                    fix=f"known: {', '.join(sorted(known))}",
                )  # fmt: skip
            if name in extents and (not isinstance(value, int) or value < 0):
                raise user_error(
                    Diag.ARGUMENT,
                    NOWHERE,
                    name=name,
                    why=f"the extent is {value!r}",
                    fix="give an integer, 0 or more",
                )
        numbers = {n: v for n, v in given.items() if n not in tensors}
        inputs = Inputs(numbers, {n: v for n, v in given.items() if n in tensors})
        for p in function.params:
            if p.name in scalars and p.name not in numbers and p.var.dtype.is_integer:
                inputs.notes[f"argument {p.name} = {DEFAULT_EXTENT}"] = None
        return inputs

    def extent(self, name: str) -> Number:
        if name in self.numbers:
            return self.numbers[name]
        self.notes[f"extent {name} = {DEFAULT_EXTENT}"] = None
        return DEFAULT_EXTENT

    def argument(self, var: Var) -> Value:
        if var.name in self.numbers:
            return self.numbers[var.name]
        return DEFAULT_EXTENT if var.dtype.is_integer else None

    def element(self, tensor: str, at: Sequence[Value]) -> Value:
        """An element of a parameter, None if it is not known."""
        value = self.data.get(tensor)
        if value is None:
            self.notes[f"contents of {tensor} unknown"] = None
            return None
        if isinstance(value, int | float):
            return value
        for i in at:
            if i is None or not 0 <= int(i) < len(value):
                self.notes[f"an element of {tensor} outside of the contents given"] = None
                return None
            value = value[int(i)]
        return value.item() if hasattr(value, "item") else value


def from_arguments(function: Function, args: Mapping[str, Any]) -> dict[str, Any]:
    """What the arguments of a run say, for :meth:`Inputs.of`: extents, numbers, contents of integer tensors.

    With these the walk makes the trips and takes the branches of that run, up to those that depend on what
    the kernel itself writes.
    """
    found: dict[str, Any] = {}
    for p in function.params:
        value, t = args[p.name], p.var.type
        if not isinstance(t, TensorType):
            found[p.name] = value
            continue
        pairs = zip(t.shape, value.shape, strict=True)
        found.update({d.name: int(n) for d, n in pairs if isinstance(d, DimVar)})
        if t.dtype.is_integer:
            found[p.name] = value.tolist()
    return found


def known_names(function: Function) -> set[str]:
    """Names that :meth:`Inputs.of` takes: extents and parameters."""
    return {*extents_of(function), *(p.name for p in function.params)}


def extents_of(function: Function) -> list[str]:
    """Names of the run-time extents of a function, in the order of its parameters and then of use."""
    found: dict[str, None] = {}
    shapes = (d for p in function.params if isinstance(p.var.type, TensorType) for d in p.var.type.shape)
    inside = (x for s in walk(function.body) for x in (*operands(s), *exits(s)))
    for x in (*shapes, *inside):
        _extents(x, found)
    return list(found)


def _extents(x: object, found: dict[str, None]) -> None:
    if isinstance(x, DimVar):
        found[x.name] = None
    elif isinstance(x, Binary):
        _extents(x.lhs, found)
        _extents(x.rhs, found)
    elif isinstance(x, Unary):
        _extents(x.operand, found)


def value_of(x: Expr, env: Mapping[Var, Any], inputs: Inputs) -> Value:
    """The value of a scalar expression, None if it depends on something unknown."""
    if isinstance(x, Var):
        return env.get(x)
    if isinstance(x, Const):
        return x.value
    if isinstance(x, Binary):
        a, b = value_of(x.lhs, env, inputs), value_of(x.rhs, env, inputs)
        if a is None or b is None:
            return _partly_known(x.op, a, b)
        return apply(x.op, a, b)
    if isinstance(x, DimVar):
        return inputs.extent(x.name)
    if isinstance(x, Unary):
        a = value_of(x.operand, env, inputs)
        if a is None:
            return None
        if x.op == "not":
            return not a
        if x.op == "-":
            return -a
        return float(a) if x.dtype.is_float else int(a)
    return None


def _partly_known(op: str, a: Value, b: Value) -> Value:
    known = b if a is None else a
    if op == "min":
        return known
    if (op == "and" and known is not None and not known) or (op == "or" and known):
        return known
    return None
