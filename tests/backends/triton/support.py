"""What the tests of this folder share: what they need, and programs that are interpreted."""

from __future__ import annotations

import pytest

from backends.triton import TritonBackend
from backends.triton.compiler import TritonToolchain
from backends.triton.interpreter import why_not
from pypto_models.backend import Compiled
from pypto_models.compile import Program, lower_for

from ..on_gpu.catalogue import Entry

needs_triton = pytest.mark.skipif(TritonToolchain().missing() is not None, reason="the extra triton")
needs_interpreter = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

TRITON = TritonBackend()


def interpreted(compiled: Compiled) -> Program:
    """The program with its kernels in Triton's interpreter."""
    return Program(compiled, TRITON.build(compiled, interpret=True))


def interpreted_entry(entry: Entry) -> Program:
    target = entry.platform.target
    return interpreted(lower_for(entry.kernel, (), target, entry.constants, backend=TRITON))
