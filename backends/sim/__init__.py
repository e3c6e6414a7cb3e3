"""The CPU simulator: any program of the language, on torch tensors, with every access checked."""

from __future__ import annotations

from .backend import SimBackend
from .machine import Machine, simulate
from .splits import check_splits

__all__ = ["Machine", "SimBackend", "check_splits", "simulate"]
