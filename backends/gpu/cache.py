"""Compiled kernels on disk: equal source for one architecture is compiled once.

The entry of a kernel is one file, named by a digest of all that its machine code follows from: the emitted
source without its comments, its parameters and options, the architecture, the device code that it calls, the
way it is compiled, and the versions of Python and of the compiler.  So a layer that repeats, a layer with and
without the head, and two programs that share a region share machine code; an edit of one region compiles one
kernel.

Files are written aside and renamed, so a reader sees whole ones only.  Processes that want the same kernels
wait for the first.  A damaged entry is compiled again with a warning, and a folder that cannot be written is
a warning too.  Everything in the folder may be deleted at any time.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import os
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

from pypto_models.backend import Progress
from pypto_models.cache import Key, make_key

from .module import KernelSource, Module
from .toolchain import MachineCode, Refusal, Resources, Toolchain, Unit, compile_unit

FOLDER_VARIABLE = "PYPTO_MODELS_CACHE"


def default_folder(name: str) -> Path:
    """``$PYPTO_MODELS_CACHE/<name>``, by default ``~/.cache/pypto-models/<name>``, of a toolchain."""
    given = os.environ.get(FOLDER_VARIABLE)
    return (Path(given) if given else Path.home() / ".cache" / "pypto-models") / name


def machine_code(
    toolchain: Toolchain,
    module: Module,
    arch: str,
    progress: Progress | None = None,
    folder: Path | None = None,
) -> dict[str, MachineCode]:
    """Every kernel of a lowered module, from the cache or compiled now.

    ``progress(done, total, kernel)`` counts those that are compiled.  Raises as
    :func:`.toolchain.compile_unit`.
    """
    store = Store(folder or default_folder(toolchain.name))
    keys = {k.name: kernel_key(toolchain, module, k, arch) for k in module.kernels}
    found = store.read(keys)
    missing = {name: key for name, key in keys.items() if name not in found}
    if missing:
        with store.lock(missing):
            found |= store.read(missing)  # what another process wrote meanwhile
            wanted = [k for k in module.kernels if k.name not in found]
            if wanted:
                new = compile_unit(toolchain, Unit(module.source, wanted), arch, progress)
                for name, code in new.items():
                    store.write(keys[name], code)
                found |= new
    return {k.name: found[k.name] for k in module.kernels}


def fill(
    toolchain: Toolchain, modules: Sequence[Module], arch: str, progress: Progress | None = None
) -> None:
    """Compile what the cache lacks of several modules in one go; what the compiler refuses stays missing."""
    store = Store(default_folder(toolchain.name))
    units: list[Unit] = []
    wanted: list[dict[str, Key]] = []
    seen: set[str] = set()
    for module in modules:
        keys = {k.name: kernel_key(toolchain, module, k, arch) for k in module.kernels}
        new = {n: key for n, key in keys.items() if not store.has(key) and key.digest not in seen}
        seen |= {key.digest for key in new.values()}
        if new:
            units.append(Unit(module.source, [k for k in module.kernels if k.name in new]))
            wanted.append(new)
    if not units:
        return
    for code, new in zip(toolchain.compile_units(units, arch, progress), wanted, strict=True):
        if not isinstance(code, Refusal):
            for name, key in new.items():
                store.write(key, code[name])


def kernel_key(toolchain: Toolchain, module: Module, kernel: KernelSource, arch: str) -> Key:
    """What the machine code of a kernel, and what a launch of it takes, follow from."""
    source = module.source
    for other in module.kernels:
        if other.name != kernel.name:
            source = source.replace(other.text, "", 1)
    return make_key(
        source=meaning(source), parameters=kernel.parameters, options=kernel.options,
        block=(kernel.threads, kernel.shared_bytes), arch=arch, versions=dict(toolchain.versions()),
        **toolchain.key_parts(),
    )  # fmt: skip


def meaning(source: str) -> str:
    """The text of a source without comments, docstrings and layout: those move, the machine code stays."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:]
    return ast.dump(tree)


_UNREADABLE = (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)  # what zipfile raises


class Damaged(Exception):
    """An entry is not what was written."""


class Store:
    """The entries of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: Key) -> Path:
        return self.folder / key.digest[:2] / f"{key.digest}.zip"

    def has(self, key: Key) -> bool:
        return self.path(key).is_file()

    def read(self, keys: Mapping[str, Key]) -> dict[str, MachineCode]:
        """Those that are there, by name; a damaged one is named in a warning."""
        out = {}
        for name, key in keys.items():
            if not self.has(key):
                continue
            try:
                out[name] = _unpack(self.path(key), key)
            except Damaged as error:
                self._warn(f"{self.path(key)} is damaged ({error}); {name} is compiled again")
        return out

    def write(self, key: Key, code: MachineCode) -> None:
        """Aside first, then in its place in one step."""
        path = self.path(key)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, aside = tempfile.mkstemp(dir=path.parent, suffix=".new")
            try:
                with os.fdopen(handle, "wb") as file:
                    _pack(file, key, code)
                os.replace(aside, path)
            except BaseException:
                Path(aside).unlink(missing_ok=True)
                raise
        except OSError as error:
            self._warn(f"{path} cannot be written ({error.strerror}); the kernel will be compiled again")

    @contextmanager
    def lock(self, keys: Mapping[str, Key]) -> Iterator[None]:
        """Held by one process at a time for one set of kernels."""
        digest = hashlib.sha256("".join(sorted(k.digest for k in keys.values())).encode()).hexdigest()
        path = self.folder / "locks" / digest
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("w")
        except OSError as error:
            self._warn(f"{self.folder} cannot be written ({error.strerror}); nothing is kept")
            yield
            return
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @staticmethod
    def _warn(text: str) -> None:
        warnings.warn(f"cache of kernels: {text}", RuntimeWarning, stacklevel=4)


def _pack(file: BinaryIO, key: Key, code: MachineCode) -> None:
    about = {
        "symbol": code.symbol, "resources": asdict(code.resources), "key": dict(key.parts),
        "binary": hashlib.sha256(code.binary).hexdigest(),
        "text": hashlib.sha256(code.text.encode()).hexdigest(),
    }  # fmt: skip
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("kernel.binary", code.binary)
        archive.writestr("kernel.text", code.text)
        archive.writestr("about.json", json.dumps(about, indent=1))


def _unpack(path: Path, key: Key) -> MachineCode:
    try:
        with zipfile.ZipFile(path) as archive:
            about = json.loads(archive.read("about.json"))
            binary, text = archive.read("kernel.binary"), archive.read("kernel.text")
        if about["key"] != dict(key.parts):
            raise Damaged("it belongs to another key")
        for name, data in (("binary", binary), ("text", text)):
            if hashlib.sha256(data).hexdigest() != about[name]:
                raise Damaged(f"the hash of its {name} differs")
        return MachineCode(binary, text.decode(), about["symbol"], Resources(**about["resources"]))
    except (*_UNREADABLE, LookupError, TypeError, ValueError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error
