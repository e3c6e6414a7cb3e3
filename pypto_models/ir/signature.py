"""What the IR's own tools read of an operation.

The op registry derives its OpDef from :class:`~.nodes.Operation` and lies above this package, so the printer
and the verifier see an op through these protocols.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from enum import Enum
from typing import Any, Protocol, runtime_checkable

from ..errors import InternalError
from .nodes import Operation
from .types import Type


class Parameter(Protocol):
    """One parameter: its name, what kind of argument it takes, and its default where it has one."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> Enum: ...

    @property
    def default(self) -> Any: ...

    @property
    def required(self) -> bool: ...


@runtime_checkable
class Definition(Protocol):
    """The facets of an op that printing and verifying need."""

    @property
    def params(self) -> tuple[Parameter, ...]: ...

    @property
    def infer(self) -> Callable[..., Type | None]: ...

    @property
    def alias(self) -> str | None: ...

    @property
    def mutates(self) -> str | None: ...

    @property
    def outside(self) -> bool: ...

    @property
    def namespaces(self) -> tuple[str, ...]: ...


@functools.cache  # the check of a protocol costs more than all else that the printer does with an op
def definition(op: Operation) -> Definition:
    """The op with its facets; an op that is not from the registry is a bug of the compiler."""
    if not isinstance(op, Definition):
        raise InternalError(f"the op {op.name} is not from the registry")
    return op
