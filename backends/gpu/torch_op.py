"""A program as an op of torch: it works inside torch.compile and CUDA graphs, and torch knows what it writes.

    op = register(Loaded.open(folder))           # or a GpuProgram
    op(x, weights, y)                            # in parameter order; writes y, gives nothing

The schema declares exactly the tensors that the caller sees change, so that a compiler may reorder, fuse and
functionalise around the op.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch.library import CustomOpDef

from .manifest import Manifest, Parameter

NAMESPACE = "pypto_models"

_REGISTERED: dict[str, tuple[str, CustomOpDef]] = {}  # by full name: hash of the source, and the op


class Program(Protocol):
    """What an op calls: a loaded bundle, or anything with its manifest and its call."""

    manifest: Manifest

    def __call__(self, args: Mapping[str, Any], /) -> Any: ...


def register(program: Program, name: str | None = None) -> CustomOpDef:
    """The op ``pypto_models::<name>``, by default of the program's name.

    It takes the program's parameters in order and returns nothing.  The same program under the same name is
    the same op.

    Raises:
        ValueError: the name is taken by another program, or is no identifier.
    """
    m = program.manifest
    name = m.name if name is None else name
    if not name.isidentifier():
        raise ValueError(f"{name!r} is no name of an op: use letters, digits and _")
    full = f"{NAMESPACE}::{name}"
    if full in _REGISTERED:
        source, op = _REGISTERED[full]
        if source != m.source_sha256:
            raise ValueError(f"{full} is another program already: give register() another name")
        return op
    names = [p.name for p in m.parameters]

    def run(*args: Any) -> None:
        program(dict(zip(names, args, strict=True)))

    def nothing(*args: Any) -> None:
        """The program has no results, so there is nothing to say about their shapes."""

    written = {p.name for p in m.parameters if p.direction != "in"}
    op = torch.library.custom_op(full, run, mutates_args=written, schema=schema(m.parameters))
    op.register_fake(nothing)
    _REGISTERED[full] = (m.source_sha256, op)
    return op


def schema(parameters: tuple[Parameter, ...]) -> str:
    """The types of the arguments; each written tensor has an alias set of its own."""
    out, sets = [], 0
    for p in parameters:
        if p.kind != "tensor":
            dtype = getattr(torch, p.dtype)
            kind = "float" if dtype.is_floating_point else "bool" if dtype == torch.bool else "int"
        elif p.direction == "in":
            kind = "Tensor"
        else:
            kind = f"Tensor(a{sets}!)"
            sets += 1
        out.append(f"{kind} {p.name}")
    return f"({', '.join(out)}) -> ()"
