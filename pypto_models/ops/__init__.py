"""The operations of the language.  Registration is this one list."""

from __future__ import annotations

from . import element, elementwise, matmul, memory, reduce, slicing, sync
from .registry import OpDef, Registry

REGISTRY = Registry(
    (*elementwise.OPS, *reduce.OPS, *matmul.OPS, *slicing.OPS, *memory.OPS, *element.OPS, *sync.OPS)
)

__all__ = ["REGISTRY", "OpDef", "Registry"]
