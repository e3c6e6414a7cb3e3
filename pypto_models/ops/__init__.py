"""The operations of the language.  Registration is this one list."""

from __future__ import annotations

from . import elementwise, matmul, memory, reduce, sync
from .registry import OpDef, Registry

REGISTRY = Registry((*elementwise.OPS, *reduce.OPS, *matmul.OPS, *memory.OPS, *sync.OPS))

__all__ = ["REGISTRY", "OpDef", "Registry"]
