"""Tiling files: what differs per target is data.

`tiling/<target>.yaml` has two parts: `source:` names constants of the kernel and gives their values before
parsing; `schedule:` is read by the GPU planner, per region `name_hint`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from pypto_models.errors import Diag, Span, UserError

PARTS = ("source", "schedule")


def load_source(folder: Path, target: str) -> dict[str, int]:
    """The `source:` constants for a target; empty if there is no file for it.

    Raises:
        UserError: the file is no YAML mapping of `source:` and `schedule:`, or a constant is no positive int.
    """
    path = folder / f"{target}.yaml"
    if not path.exists():
        return {}
    try:
        data = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise _bad(path, f"not YAML: {error}", "mend the file", mark.line + 1 if mark else 1) from error
    if not isinstance(data, dict) or set(data) - set(PARTS):
        raise _bad(path, f"its top level is {_keys(data)}", f"use the keys {' and '.join(PARTS)}")
    source = data.get("source") or {}
    if not isinstance(source, dict):
        raise _bad(path, "source: is no mapping", "write `NAME: value` lines below it")
    for name, value in source.items():
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise _bad(path, f"{name} is {value!r}", "tile sizes are positive integers")
    return dict(source)


def _keys(data: Any) -> str:
    return ", ".join(map(str, data)) if isinstance(data, dict) else type(data).__name__


def _bad(path: Path, why: str, fix: str, line: int = 1) -> UserError:
    return UserError(Diag.TILING, Span(str(path), line), {"file": path.name, "why": why, "fix": fix})
