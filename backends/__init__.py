"""The one table of backends.  A backend is one folder and one line here."""

from __future__ import annotations

from collections.abc import Mapping

from pypto_models.backend import Backend

from .cute import CuteBackend
from .sim import SimBackend
from .triton import TritonBackend

BACKENDS: Mapping[str, Backend] = {b.name: b for b in (SimBackend(), CuteBackend(), TritonBackend())}
