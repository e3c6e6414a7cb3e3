"""A module of the project with pieces of its text replaced, as a module of its own."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType


def planted(module: ModuleType, folder: Path, *changes: tuple[str, str], entry: str = "") -> ModuleType:
    """``module`` with each ``(old, new)`` replaced, which must occur once, and ``entry`` at its end."""
    text = Path(str(module.__file__)).read_text(encoding="utf-8")
    for old, new in changes:
        if text.count(old) != 1:
            raise ValueError(f"{text.count(old)} places of {module.__name__} match {old!r}")
        text = text.replace(old, new)
    file = folder / "planted.py"
    file.write_text(f"{text}\n\n{entry}", encoding="utf-8")
    spec = importlib.util.spec_from_file_location("planted", file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a module")
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made
