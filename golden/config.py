"""The two dictionaries of options: which keys exist, and what becomes of them."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

DEFAULT_PLATFORM = "a2a3sim"

DFX_FLAGS = (
    "enable_l2_swimlane",
    "enable_chip_swimlane",
    "enable_pmu",
    "enable_dep_gen",
    "enable_dump_tensor",
    "enable_dump_args",
    "enable_scope_stats",
)
"""Instrumentation of the device's run time, under the names of all its versions."""

_LOG_LEVELS = {
    "debug": logging.DEBUG,
    **{f"v{i}": logging.DEBUG for i in range(10)},
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "null": logging.CRITICAL + 1,
}

RUNTIME_KEYS = ("platform", "device_id", "log_level", *DFX_FLAGS)


@dataclass(frozen=True)
class RuntimeConfig:
    """A checked ``runtime_cfg``. ``ignored`` names the options that were set and that a simulator has no use
    for."""

    platform: str
    log_level: str | int | None
    ignored: tuple[str, ...]

    @staticmethod
    def of(config: Mapping[str, Any] | None) -> RuntimeConfig:
        """Check ``config``.

        Raises:
            TypeError: an unknown key; the message lists the known ones.
        """
        given = dict(config or {})
        reject_unknown("runtime_cfg", given, RUNTIME_KEYS)
        ignored = tuple(key for key in ("device_id", *DFX_FLAGS) if given.get(key))
        return RuntimeConfig(given.get("platform") or DEFAULT_PLATFORM, given.get("log_level"), ignored)

    def apply_log_level(self) -> None:
        """Set the threshold of the ``pypto_models`` logger, by name (``"debug"``) or number.

        Raises:
            ValueError: an unknown name.
        """
        level = self.log_level
        if level is None:
            return
        if isinstance(level, str):
            if level.lower() not in _LOG_LEVELS:
                raise ValueError(f"log_level {level!r} is not one of {', '.join(_LOG_LEVELS)}")
            level = _LOG_LEVELS[level.lower()]
        logging.getLogger("pypto_models").setLevel(level)


def compile_options(compile_program: Callable[..., Any], config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Check ``compile_cfg`` against the keyword parameters of the compiler itself.

    Raises:
        TypeError: an unknown key; the message lists the known ones.
    """
    given = dict(config or {})
    parameters = inspect.signature(compile_program).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        known: list[str] | None = None  # the compiler checks them
    else:
        keywords = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
        known = [name for name in keywords if name != "platform"]
    if "platform" in given:
        raise TypeError("compile_cfg has no key 'platform': it belongs to runtime_cfg")
    if known is not None:
        reject_unknown("compile_cfg", given, known)
    return given


def reject_unknown(what: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise TypeError if ``given`` has a key that is not ``known``."""
    known = sorted(known)
    if unknown := sorted(set(given) - set(known)):
        raise TypeError(f"{what} has no key {', '.join(map(repr, unknown))}; known keys: {', '.join(known)}")
