"""Triton source and machine code for NVIDIA and AMD GPUs: made anywhere, launched where the GPU is."""

from __future__ import annotations

from ..gpu.manifest import BundleError
from ..gpu.program import GpuProgram
from ..gpu.runtime import LaunchError, Loaded, NoDevice
from .backend import TritonBackend
from .interpreted import InterpretedProgram

__all__ = [
    "BundleError", "GpuProgram", "InterpretedProgram", "LaunchError", "Loaded", "NoDevice", "TritonBackend",
]  # fmt: skip
