"""What a user fixes of a schedule: the part ``schedule:`` of a tiling file.

    schedule:
      down_proj: {slices: 4, warps_k: 4}
      attention: {warps: 8}
      attention_merge: {launch: own}  # and not at the end of the one before
      out_proj: {rows: 16, n: 5120, k: 5120, warps_k: 8}  # for a product of this size, and no other

A region is named by its ``name_hint``, a key is one of those below; what is not named the planner chooses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from ..errors import Diag, Span, UserError

Value = int | str

NUMBERS = {
    "slices": "K slices, each owned by other CTAs",
    "columns": "columns of a unit of work",
    "walkers": "CTAs of a slice",
    "warps_n": "warps along the columns",
    "warps_k": "warps along K",
    "step": "elements of K in a step",
    "slot_cells": "cells of a ring slot",
    "slots": "slots of the ring",
    "warps": "warps of a CTA (forms items and blocks)",
    "ctas": "CTAs of the launch (forms items and blocks)",
    "cuts": "ring slots of a page (form items)",
}
SIZES = {
    "rows": "rows of the batch's tile",
    "n": "columns of the product",
    "k": "elements of K",
}
"""Not fixed but asked for: the rest holds for a product of this size."""
CHOICES = {
    "x": ("registers", "shared", "ring"),
    "owner": ("warp", "cta"),
    "across": ("workspace", "red"),
    "finish": ("phase", "consumer"),
    "batch": ("m", "n"),
    "launch": ("own",),  # no part of the launch before
}
FORMS = {
    "stream": (
        *SIZES, "slices", "columns", "walkers", "warps_n", "warps_k", "step", "slot_cells", "slots", *CHOICES
    ),
    "items": ("warps", "ctas", "cuts", "slots", "launch"),
    "blocks": ("warps", "ctas", "launch"),
}


@dataclass(frozen=True)
class Override:
    """The values that are fixed for one region, and where they stand."""

    region: str
    values: tuple[tuple[str, Value], ...]
    file: str = ""
    line: int = 0

    def get(self, key: str) -> Value | None:
        return dict(self.values).get(key)

    def number(self, key: str) -> int | None:
        value = self.get(key)
        return value if isinstance(value, int) else None

    @property
    def sized(self) -> bool:
        """Whether it holds for products of one size only."""
        return any(key in SIZES for key, _ in self.values)

    def at(self, rows: int, n: int, k: int) -> Override:
        """What it fixes for a product of this size: nothing if it is for another."""
        sizes = {"rows": rows, "n": n, "k": k}
        values = dict(self.values)
        if any(values.get(name, size) != size for name, size in sizes.items()):
            return replace(self, values=())
        return self.of_any_size()

    def of_any_size(self) -> Override:
        """What it fixes, whatever the product."""
        return replace(self, values=tuple((key, v) for key, v in self.values if key not in SIZES))

    def error(self, why: str, fix: str) -> UserError:
        """A user error at the place of this override."""
        return bad(self.file or "schedule", self.line or 1, why, fix)


NONE = Override("", ())


def bad(file: str, line: int, why: str, fix: str) -> UserError:
    return UserError(Diag.TILING, Span(file, line), {"file": Path(file).name, "why": why, "fix": fix})


def overrides(
    values: Mapping[str, Mapping[str, Value]], file: str = "", line: int = 0
) -> dict[str, Override]:
    """Overrides from plain mappings: region, key, value.  Raises a user error for an unknown key or value."""
    return {
        region: Override(region, tuple((k, _value(k, v, file, line)) for k, v in keys.items()), file, line)
        for region, keys in values.items()
    }


def load(path: Path) -> dict[str, Override]:
    """The overrides of a tiling file, none if there is no such file or part.

    Raises a user error with file and line: no YAML mapping, an unknown key, a value of the wrong kind.
    """
    if not path.exists():
        return {}
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise bad(str(path), mark.line + 1 if mark else 1, f"not YAML: {error}", "mend the file") from error
    if root is None:
        return {}
    found: dict[str, Override] = {}
    for name, node in _entries(path, root, "the file"):
        if name == "schedule":
            for region, keys in _entries(path, node, "schedule:"):
                values = []
                for key, value in _entries(path, keys, region):
                    line = value.start_mark.line + 1
                    values.append((key, _value(key, yaml.safe_load(yaml.serialize(value)), str(path), line)))
                found[region] = Override(region, tuple(values), str(path), keys.start_mark.line + 1)
    return found


def _entries(path: Path, node: yaml.Node, what: str) -> list[tuple[str, yaml.Node]]:
    line = node.start_mark.line + 1
    if isinstance(node, yaml.ScalarNode) and node.tag.endswith(":null"):
        return []
    if not isinstance(node, yaml.MappingNode):
        raise bad(str(path), line, f"{what} holds no mapping", "write `name: value` lines")
    seen: dict[str, yaml.Node] = {}
    for key, value in node.value:
        if key.value in seen:
            raise bad(str(path), key.start_mark.line + 1, f"{key.value!r} stands twice", "keep one of them")
        seen[key.value] = value
    return list(seen.items())


def _value(key: str, value: object, file: str, line: int) -> Value:
    if key in NUMBERS or key in SIZES:
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
        raise bad(file, line, f"{key} is {value!r}", f"give a positive integer: {(NUMBERS | SIZES)[key]}")
    if key in CHOICES:
        if isinstance(value, str) and value in CHOICES[key]:
            return value
        raise bad(file, line, f"{key} is {value!r}", f"one of {', '.join(CHOICES[key])}")
    known = ", ".join(sorted((*NUMBERS, *SIZES, *CHOICES)))
    raise bad(file, line, f"a schedule has no key {key!r}", f"known: {known}")


def check_names(given: Mapping[str, Override], regions: Iterable[str]) -> None:
    """Raises a user error for an override whose region the program does not have."""
    known = list(dict.fromkeys(regions))
    for name, o in given.items():
        if name not in known:
            raise o.error(f"no region is called {name!r}", f"known: {', '.join(known)}")
