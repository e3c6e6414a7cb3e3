"""Integer expressions over run-time extents, as text: how a manifest says grids and shapes."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import lru_cache
from types import CodeType

_ALLOWED = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Call, ast.Name, ast.Constant, ast.Load,
    ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.USub,
)  # fmt: skip


@lru_cache(maxsize=4096)
def parse(text: str) -> CodeType:
    """Code for ``text``; ValueError if it holds anything but names, integers, + - * // %, min and max."""
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise ValueError(f"{text!r} is no integer expression: {error.msg}") from error
    for node in ast.walk(tree):
        if not isinstance(node, _ALLOWED) or (isinstance(node, ast.Constant) and type(node.value) is not int):
            raise ValueError(f"{text!r} is no integer expression: it holds {type(node).__name__}")
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) not in ("min", "max"):
            raise ValueError(f"{text!r} calls something other than min and max")
    return compile(tree, "<extent>", "eval")


def evaluate(text: str, extents: Mapping[str, int]) -> int:
    """The value of ``text``; KeyError names an extent that is missing."""
    code = parse(text)
    if missing := [n for n in code.co_names if n not in extents and n not in ("min", "max")]:
        raise KeyError(missing[0])
    return int(eval(code, {"__builtins__": {}, "min": min, "max": max}, dict(extents)))
