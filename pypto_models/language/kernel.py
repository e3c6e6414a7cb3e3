"""``@pl.jit`` and ``@pl.jit.inline``: kernels as objects that know their source."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..errors import Diag, Span, user_error
from .constructs import Unsupported
from .names import UNSUPPORTED_JIT

_NO_VALUE = object()


@dataclass(eq=False)
class Kernel:
    """A function of the language.  ``inline`` kernels are spliced into their caller.

    Calling an entry compiles it for the arguments and runs it, ``config`` holding keywords of
    :func:`pypto_models.compile`; the body itself is never executed by Python.
    """

    fn: Callable[..., Any]
    inline: bool
    options: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        functools.update_wrapper(self, self.fn)

    @property
    def name(self) -> str:
        return self.fn.__name__

    @property
    def file(self) -> str:
        return self.fn.__code__.co_filename

    @functools.cached_property
    def node(self) -> ast.FunctionDef:
        """The function's syntax tree, with line and column numbers of the file."""
        first = self.fn.__code__.co_firstlineno
        for node in ast.walk(_module_tree(self.file, self.name)):
            if isinstance(node, ast.FunctionDef) and node.name == self.name:
                start = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                if start == first:
                    return node
        raise user_error(Diag.NO_SOURCE, Span(self.file, first), name=self.name)

    @property
    def span(self) -> Span:
        return Span(self.file, self.node.lineno, self.node.col_offset)

    def lookup(self, name: str) -> Any:
        """The value of a free name, from the closure or the module; ``MISSING`` if there is none."""
        code = self.fn.__code__
        if name in code.co_freevars and self.fn.__closure__ is not None:
            cell = self.fn.__closure__[code.co_freevars.index(name)]
            try:
                return cell.cell_contents
            except ValueError:  # an empty cell: the enclosing function has not bound the name yet
                return _NO_VALUE
        return self.fn.__globals__.get(name, _NO_VALUE)

    def compile(self, *args: Any, config: dict[str, Any] | None = None) -> Any:
        """Compile for these arguments; see :func:`pypto_models.compile.compile`."""
        return _compiler(self, *args, **(config or {}))

    def __call__(self, *args: Any, config: dict[str, Any] | None = None) -> Any:
        if self.inline:
            raise user_error(
                Diag.MISPLACED, self.span, what=f"the inline kernel {self.name}", why="cannot run by itself",
                fix="call it from a @pl.jit entry",
            )  # fmt: skip
        return self.compile(*args, config=config)(*args)

    def __repr__(self) -> str:
        return f"<pl.jit{'.inline' if self.inline else ''} {self.name}>"


MISSING = _NO_VALUE


def _no_compiler(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("the compile driver is not installed: import pypto_models first")


_compiler: Callable[..., Any] = _no_compiler


def install_compiler(compile_fn: Callable[..., Any]) -> None:
    """Called once by the package root: the language itself does not import the driver."""
    global _compiler
    _compiler = compile_fn


@functools.lru_cache(maxsize=256)
def _parsed(file: str, text: str) -> ast.Module:
    return ast.parse(text, filename=file)


def _module_tree(file: str, name: str) -> ast.Module:
    linecache.checkcache(file)
    text = "".join(linecache.getlines(file))
    if not text:
        raise user_error(Diag.NO_SOURCE, Span(file, 0), name=name)
    return _parsed(file, text)


class _Jit:
    """The decorator object behind ``pl.jit``: plain, with options, and its ``.inline`` form."""

    def __init__(self, inline: bool) -> None:
        self._inline = inline

    def __call__(self, fn: Callable[..., Any] | None = None, **options: object) -> Any:
        if fn is None:
            return lambda f: Kernel(f, self._inline, options)
        if not inspect.isfunction(fn):
            raise TypeError(f"@pl.jit decorates functions, got {type(fn).__name__}")
        return Kernel(fn, self._inline, options)


class _Entry(_Jit):
    inline = _Jit(inline=True)

    def __getattr__(self, name: str) -> Any:
        if name in UNSUPPORTED_JIT:
            why, fix = UNSUPPORTED_JIT[name]
            return Unsupported(f"jit.{name}", "", why, fix)
        raise AttributeError(f"pl.jit has no member {name!r}")


jit = _Entry(inline=False)
