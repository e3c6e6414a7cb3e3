"""Who may write what: the specs of a call matched with the parameters of the kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from golden.program import Program
from golden.spec import ScalarSpec, Spec, TensorSpec

Role = Literal["input", "inout", "output"]


@dataclass(frozen=True)
class TensorRole:
    """A tensor of the call.

    ``role``: ``input`` is only read; ``inout`` has an initial value and may be written; ``output`` has none.
    ``declared``: the kernel or the spec says that it is written, so a test in which it stays the same shows
    nothing. ``root``: the spec that owns the memory, itself unless ``alias_of``.
    """

    spec: TensorSpec
    role: Role
    declared: bool
    root: str


def bind(program: Program, specs: Sequence[Spec]) -> dict[str, TensorRole]:
    """The tensors of a call by spec name, in parameter order. Specs and parameters correspond by position.

    Raises:
        ValueError: names repeat; number, kind or order differ from the parameters; ``alias_of`` names no
            earlier spec of the same shape and dtype; a spec is an output, but the kernel cannot write it.
    """
    _check_order(program, specs)
    roots = _roots(specs)
    roles: dict[str, TensorRole] = {}
    for spec, param in zip(specs, program.params, strict=True):
        if isinstance(spec, ScalarSpec):
            continue
        may_write = param.name in program.written
        declared = spec.is_output or param.direction != "in"
        if spec.is_output and param.direction == "in" and not may_write:
            raise ValueError(
                f"{spec.name!r} is an output, but the kernel only reads its parameter {param.name!r}: "
                f"annotate it pl.Out[...] or pl.InOut[...] and write to it"
            )
        role: Role = "inout" if declared or may_write else "input"
        if param.direction == "out" or (
            spec.is_output and spec.init_value is None and param.direction == "in"
        ):
            role = "output"
        roles[spec.name] = TensorRole(spec, role, declared, roots[spec.name])
    # memory that is shared has the content of its owner, and changes if any of its names is written
    shared = {r.root for name, r in roles.items() if r.root != name}
    changing = {r.root for r in roles.values() if r.root in shared and r.role != "input"}
    return {
        name: TensorRole(r.spec, "inout", r.declared, r.root) if r.root in changing else r
        for name, r in roles.items()
    }


def _check_order(program: Program, specs: Sequence[Spec]) -> None:
    names = [spec.name for spec in specs]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"spec names repeat: {', '.join(map(repr, repeated))}")
    params = [param.name for param in program.params]
    if len(names) != len(params):
        raise ValueError(f"{len(names)} specs {names} for {len(params)} parameters {params}")
    if names != params and set(names) == set(params):
        raise ValueError(f"the specs {names} are not in the order of the parameters {params}")
    for spec, param in zip(specs, program.params, strict=True):
        kind = "tensor" if isinstance(spec, TensorSpec) else "scalar"
        if kind != param.kind:
            raise ValueError(f"spec {spec.name!r} is a {kind}, parameter {param.name!r} is a {param.kind}")


def _roots(specs: Sequence[Spec]) -> dict[str, str]:
    owners: dict[str, TensorSpec] = {}
    roots: dict[str, str] = {}
    for spec in specs:
        if isinstance(spec, ScalarSpec):
            continue
        if spec.alias_of is None:
            owners[spec.name] = spec
            roots[spec.name] = spec.name
            continue
        owner = owners.get(spec.alias_of)
        if owner is None:
            raise ValueError(
                f"spec {spec.name!r}: alias_of={spec.alias_of!r} names no earlier tensor with its own memory"
            )
        if (tuple(owner.shape), owner.dtype) != (tuple(spec.shape), spec.dtype):
            raise ValueError(
                f"spec {spec.name!r}: alias_of={spec.alias_of!r} has {owner.dtype} {list(owner.shape)}, "
                f"this one {spec.dtype} {list(spec.shape)}"
            )
        roots[spec.name] = owner.name
    return roots
