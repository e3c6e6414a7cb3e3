"""PyPTO Models: decode layers written once as tile code, compiled for every target."""

from __future__ import annotations

from .compile import Program, compile
from .errors import InternalError, UserError
from .language.kernel import install_compiler

install_compiler(compile)  # so that calling a kernel compiles it, without the language importing the driver

__version__ = "0.1.0"

__all__ = ["InternalError", "Program", "UserError", "compile"]
