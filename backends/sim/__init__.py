"""The CPU simulator: any program of the language, on torch tensors, with every access checked."""

from __future__ import annotations

from .backend import SimBackend
from .machine import Machine, simulate

__all__ = ["Machine", "SimBackend", "simulate"]
