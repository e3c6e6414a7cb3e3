"""Import a kernel file that says ``import pypto.language as pl``, with this language in its place.

The file itself is not changed.  Its folder is importable while it loads, as when it runs as a script.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from . import language
from .errors import Diag, Span, UserError
from .language.constructs import Unsupported

_MAPPED = ("pypto", "pypto.language", "pypto.language.distributed")


class _Mapped(ModuleType):
    """``pypto.language`` as seen by the file: our names, and while it is imported a marker for any other."""

    importing = True

    def __init__(self) -> None:
        super().__init__(language.__name__)  # the front end knows the language by its name

    def __dir__(self) -> list[str]:
        return dir(language)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            return getattr(language, name)
        except AttributeError:
            if not self.importing:
                raise
            return Unsupported(name, "", "this name is not known here", "see docs/language.md")


def load_module(path: Path) -> ModuleType:
    """The module of a Python file, its pypto imports mapped.

    Raises:
        UserError: the file is missing, is no Python, or fails to import; the error names the line in it.
    """
    path = path.resolve()
    if not path.is_file():
        raise UserError(Diag.SYNTAX, Span(str(path), 0), {"what": "a missing file", "fix": "check the path"})
    spec = importlib.util.spec_from_file_location(f"checked_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(
            Diag.SYNTAX, Span(str(path), 0), {"what": "this kind of file", "fix": "give a .py file"}
        )
    module = importlib.util.module_from_spec(spec)
    with _mapped(path.parent):
        try:
            spec.loader.exec_module(module)
        except SyntaxError as error:
            span = Span(str(path), error.lineno or 1, max(0, (error.offset or 1) - 1))
            raise UserError(
                Diag.SYNTAX, span, {"what": error.msg, "fix": "mend the Python syntax"}
            ) from error
        except UserError:
            raise
        except Exception as error:  # whatever the user's module raises is the user's finding
            what = f"a file whose import fails ({type(error).__name__}: {error})"
            fields: dict[str, object] = {"what": what, "fix": "make it importable"}
            raise UserError(Diag.SYNTAX, _innermost(error, str(path)), fields) from error
    return module


def _innermost(error: BaseException, file: str) -> Span:
    """The last line of ``file`` in a traceback."""
    line, trace = 1, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == file:
            line = trace.tb_lineno
        trace = trace.tb_next
    return Span(file, line)


@contextmanager
def _mapped(folder: Path) -> Iterator[None]:
    """Put the mapped modules in place, and the folder on the path, for the time of one import."""
    mapped = _Mapped()
    package = ModuleType("pypto")
    package.__path__ = []
    package.language = mapped  # type: ignore[attr-defined]
    distributed = Unsupported("distributed", "", "distributed programs are not covered", "keep it on pypto")
    replaced = {"pypto": package, "pypto.language": mapped, "pypto.language.distributed": distributed}
    saved = {name: sys.modules.get(name) for name in _MAPPED}
    before = set(sys.modules)
    sys.modules.update(replaced)  # type: ignore[arg-type]
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        mapped.importing = False
        sys.path.remove(str(folder))
        for name, old in saved.items():
            if old is None:
                sys.modules.pop(name, None)
            else:
                sys.modules[name] = old
        for name in set(sys.modules) - before:  # siblings such as `config` must not leak into the next file
            origin = getattr(sys.modules[name], "__file__", None)
            if origin is not None and Path(origin).parent == folder:
                del sys.modules[name]
