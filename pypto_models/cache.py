"""The compile cache: equal programs are built once, and nothing else is ever taken for equal.

    key = make_key(function=function, target=target, backend=backend.name, options=options, tools=tools)
    program = store.get_or_build(key, build)

**What is in the key.**  The SHA-256 of the stable text (:func:`stable_text`) of all that a build reads:

* ``function``: the IR as the front end gives it, everything inlined and specialised.  All later stages follow
  from it and from the rest of the key.  The text holds every field of every node, which is more than the
  printed source does: types with their valid rectangles, memory spaces, options, hints, and spans.
* ``target``: every value of the target's file.
* ``backend`` and ``options``: the backend's name and its options, by name.
* ``tools``: versions of what compiles, with a digest of the compiler's and the backend's own source files, so
  that an edited pass or emitter never meets what its older self built.

Spans are in the key since executables carry them: the errors of a program name its lines, and a program made
from other lines would name the wrong ones.  A copy of a kernel at another place is compiled again.  Variables
are numbered in the order in which they appear; their ids, which count up in a process, are not in the key.

**It fails closed.**  A value whose class does not determine its text (a function, a tensor, an op that is not
the registry's) raises :class:`NoStableText`; the driver then builds without the cache and says so in a
warning.  A build that raises leaves nothing behind.

A store on disk takes the same key: :attr:`Key.digest` is its file name, and :attr:`Key.parts`, kept beside
the artifact, tell which part of two keys differs.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar

import torch

from .errors import Span
from .ir.expr import Var
from .ir.nodes import Operation
from .ops import REGISTRY

T = TypeVar("T")

CAPACITY = 64  # programs; a model has a few kernels, each for a few batch sizes
OWN = __name__.partition(".")[0]


class NoStableText(TypeError):
    """A value has no text that tells it from every other value."""


# ---------------------------------------------------------------------------------------------- the key
@dataclass(frozen=True)
class Key:
    """``digest`` names the program; ``parts`` are the digests that it is made of, by name."""

    digest: str
    parts: tuple[tuple[str, str], ...]

    def differs(self, other: Key) -> tuple[str, ...]:
        """Names of the parts in which two keys differ."""
        mine, theirs = dict(self.parts), dict(other.parts)
        return tuple(n for n in sorted(mine | theirs) if mine.get(n) != theirs.get(n))


def make_key(**parts: object) -> Key:
    """The key of what is built from ``parts``, each of which must have a stable text.

    Raises :class:`NoStableText`, which names the part and the value.
    """
    digests = []
    for name, value in sorted(parts.items()):
        try:
            digests.append((name, sha256(stable_text(value))))
        except NoStableText as error:
            raise NoStableText(f"{name}: {error}") from None
    return Key(sha256(json.dumps(digests)), tuple(digests))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def stable_text(value: object) -> str:
    """A text that two values share only if nothing that reads them can tell them apart.

    The same in every process.  Types are part of it (1, 1.0 and True differ), and a value of a class that is
    not known here raises :class:`NoStableText`: subclasses too, since they may hold more.
    """
    return _Text().of(value)


class _Text:
    """One walk over a value: numbers the variables of the IR as they appear."""

    def __init__(self) -> None:
        self.vars: dict[Var, int] = {}
        self.spans: dict[Span, str] = {}

    def of(self, value: object) -> str:
        kind = type(value)
        if kind is Span:  # the most frequent class by far
            known = self.spans.get(value)  # type: ignore[call-overload]
            if known is None:
                known = self.spans[value] = self.fields(value)  # type: ignore[index]
            return known
        if value is None or kind in (bool, int, float):
            return repr(value)  # repr of a float is exact
        if kind is str:
            return json.dumps(value)
        if isinstance(value, tuple | list):
            if kind not in (tuple, list):
                raise NoStableText(f"{kind.__qualname__} is a subclass of a sequence")
            return f"{kind.__name__}({','.join(map(self.of, value))})"
        if kind in (set, frozenset):
            return f"set({','.join(sorted(map(self.of, value)))})"  # type: ignore[call-overload]
        if isinstance(value, Mapping):
            items = sorted((self.of(k), self.of(v)) for k, v in value.items())
            return f"map({','.join(f'{k}:{v}' for k, v in items)})"
        if isinstance(value, Enum):
            return f"{_own_class(kind)}.{value.name}"
        if isinstance(value, Var):
            return self.variable(value)
        if isinstance(value, Operation):
            name = value.name
            if REGISTRY.by_name.get(name) is not value:
                raise NoStableText(f"the op {name!r} is not the registry's")
            return f"op({json.dumps(name)})"
        if is_dataclass(value) and not isinstance(value, type):
            return self.fields(value)
        raise NoStableText(f"a {kind.__module__}.{kind.__qualname__} has no stable text: {value!r:.80}")

    def variable(self, v: Var) -> str:
        if v in self.vars:
            return f"%{self.vars[v]}"
        self.vars[v] = number = len(self.vars)
        return f"%{number}=var({self.of(v.name)},{self.of(v.type)},{self.of(v.span)})"

    def fields(self, value: Any) -> str:
        values = (f"{f.name}={self.of(getattr(value, f.name))}" for f in fields(value))
        return f"{_own_class(type(value))}({','.join(values)})"


def _own_class(kind: type) -> str:
    """The name of a class of this package, whose source is in the key as well."""
    if kind.__module__.partition(".")[0] != OWN or "<locals>" in kind.__qualname__:
        raise NoStableText(f"the class {kind.__module__}.{kind.__qualname__} is not one of {OWN}")
    return f"{kind.__module__}.{kind.__qualname__}"


# -------------------------------------------------------------------------------------------- tools
def tool_versions(backend: object) -> dict[str, str]:
    """What compiles: versions by name, and digests of the sources of the compiler and of the backend.

    ``backend`` is one of ``backends/``, without state of its own.  One that compiles for a device adds its
    compiler's version to the result.
    """
    module = sys.modules[type(backend).__module__]
    if "<locals>" in type(backend).__qualname__ or vars(backend):
        raise NoStableText(f"the backend {type(backend).__qualname__} has state of its own")
    package = module.__name__.partition(".")[0]
    bases = {c.__module__ for c in type(backend).__mro__}  # backends share what is in the folder of a base
    folders = {folder_of(sys.modules[m]) for m in bases if m.partition(".")[0] == package}
    digests = " ".join(sources(folder) for folder in sorted(folders))
    return {
        "python": f"{platform.python_implementation()} {sys.version}",
        "machine": f"{sys.platform} {platform.machine()}",
        "torch": str(torch.__version__),
        OWN: SOURCES,
        "backend": f"{module.__name__}.{type(backend).__qualname__} {digests}",
    }


def folder_of(module: ModuleType) -> Path:
    """The folder that holds the module's source."""
    if module.__file__ is None:
        raise NoStableText(f"the source of {module.__name__} is not in a file")
    return Path(module.__file__).resolve().parent


@functools.cache
def sources(folder: Path) -> str:
    """Digest of the files below ``folder``, with their names; compiled Python aside.  Read once."""
    digest = hashlib.sha256()
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc")
    if not files:
        raise NoStableText(f"{folder} holds no source")
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()


SOURCES = sources(Path(__file__).resolve().parent)
"""Of this package, taken as it is imported: a file that is edited later is not what runs."""


# -------------------------------------------------------------------------------------------- stores
class Store(Protocol[T]):
    """What a store of built programs does, in memory or on disk."""

    def get_or_build(self, key: Key, build: Callable[[], T]) -> T:
        """What is kept under ``key``; if nothing is, ``build()``, which is then kept.

        Callers that ask for one key at the same time share one build.  If it raises, nothing is kept.
        """
        ...


@dataclass(frozen=True)
class Counts:
    """Since the store was made or cleared: calls that found a program, builds that were made and kept."""

    hits: int = 0
    builds: int = 0


class MemoryStore(Generic[T]):
    """The last ``capacity`` programs that were used, shared by the threads of a process."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; keep at least 1 program")
        self.capacity = capacity
        self._kept: OrderedDict[Key, T] = OrderedDict()
        self._building: dict[Key, threading.Lock] = {}
        self._lock = threading.Lock()
        self._hits = self._builds = 0

    def get_or_build(self, key: Key, build: Callable[[], T]) -> T:
        """See :class:`Store`.  Builds of different keys run side by side."""
        with self._lock:
            turn = self._building.setdefault(key, threading.Lock())
        try:
            with turn:
                with self._lock:
                    if key in self._kept:
                        self._kept.move_to_end(key)
                        self._hits += 1
                        return self._kept[key]
                built = build()
                with self._lock:
                    self._builds += 1
                    self._kept[key] = built
                    while len(self._kept) > self.capacity:
                        self._kept.popitem(last=False)
                return built
        finally:
            with self._lock:
                self._building.pop(key, None)

    @property
    def counts(self) -> Counts:
        with self._lock:
            return Counts(self._hits, self._builds)

    def __len__(self) -> int:
        with self._lock:
            return len(self._kept)

    def clear(self) -> None:
        """Forget every program; those that are in use stay usable."""
        with self._lock:
            self._kept.clear()
            self._hits = self._builds = 0
