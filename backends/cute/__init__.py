"""CuTe DSL source and machine code for NVIDIA GPUs: made anywhere, launched where the GPU is."""

from __future__ import annotations

from .backend import CuteBackend, CuteProgram
from .manifest import BundleError
from .runtime import LaunchError, Loaded, NoDevice

__all__ = ["BundleError", "CuteBackend", "CuteProgram", "LaunchError", "Loaded", "NoDevice"]
