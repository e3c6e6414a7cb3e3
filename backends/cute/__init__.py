"""CuTe DSL source and machine code for NVIDIA GPUs: made anywhere, launched where the GPU is."""

from __future__ import annotations

from ..gpu.manifest import BundleError
from ..gpu.program import GpuProgram
from ..gpu.runtime import LaunchError, Loaded, NoDevice
from .backend import CuteBackend

__all__ = ["BundleError", "CuteBackend", "GpuProgram", "LaunchError", "Loaded", "NoDevice"]
