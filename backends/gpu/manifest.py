"""The manifest of a bundle: everything that launching needs to know, as JSON beside the machine code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 5
FILE = "manifest.json"
SOURCE = "kernels.py"
SUFFIXES = (".cubin", ".hsaco")  # of files of machine code


class BundleError(ValueError):
    """A bundle that cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class Parameter:
    """An argument of the program: ``kind`` tensor or scalar, ``shape`` in run-time extents.

    ``private``: the kernels write it though it is only an input; they get a copy, and the caller sees
    nothing.
    """

    name: str
    kind: str
    direction: str
    dtype: str
    shape: tuple[str, ...] = ()
    private: bool = False


@dataclass(frozen=True)
class KernelEntry:
    """One file of machine code: ``parameters`` are (name, kind) in the order of the symbol's.

    What a launch takes is as in :class:`.toolchain.Resources`.
    """

    name: str
    region: str
    line: int
    how: str
    file: str
    symbol: str
    sha256: str
    parameters: tuple[tuple[str, str], ...]
    threads: int
    shared_bytes: int
    registers: int
    local_bytes: int
    extra_pointers: int = 0
    overlaps: bool = False


@dataclass(frozen=True)
class Workspace:
    name: str
    dtype: str
    shape: tuple[str, ...]


@dataclass(frozen=True)
class Launch:
    """A call of ``kernel`` on ``grid`` blocks; arguments are (pointer | extent | scalar, text).

    ``grid`` is an expression over run-time extents, scalar arguments and the variables of loops around.
    """

    kernel: str
    grid: str
    arguments: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Repeat:
    """Launches, in order, for each value of ``var`` in range(start, stop, step).

    The bounds are expressions as a grid is; the body may use ``var`` in its own.
    """

    var: str
    start: str
    stop: str
    step: str
    body: tuple[Launch | Repeat, ...]


@dataclass(frozen=True)
class Manifest:
    """A program of a ``backend`` for the architecture ``arch`` (``sm_90a``, ``gfx942``).

    ``early``: tensors that a kernel reads before it waits for those before it; nothing that still runs may
    write them.  ``fenced``: some kernel starts only when all that ran before the program is complete.
    """

    name: str
    backend: str
    target: str
    arch: str
    parameters: tuple[Parameter, ...]
    workspaces: tuple[Workspace, ...]
    kernels: tuple[KernelEntry, ...]
    launches: tuple[Launch | Repeat, ...]
    source_sha256: str
    early: tuple[str, ...] = ()
    fenced: bool = True
    versions: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str, where: str) -> Manifest:
        """Raises BundleError if ``text`` is no manifest of this format."""
        try:
            data: dict[str, Any] = json.loads(text)
            if data["format"] != FORMAT:
                made = data["format"]
                raise BundleError(f"{where} has format {made}, this version reads {FORMAT}: build it again")
            return Manifest(
                **data
                | {
                    "early": tuple(data["early"]),
                    "parameters": tuple(
                        Parameter(**p | {"shape": tuple(p["shape"])}) for p in data["parameters"]
                    ),
                    "workspaces": tuple(
                        Workspace(**w | {"shape": tuple(w["shape"])}) for w in data["workspaces"]
                    ),
                    "kernels": tuple(
                        KernelEntry(**k | {"parameters": _pairs(k["parameters"])}) for k in data["kernels"]
                    ),
                    "launches": tuple(map(_launch, data["launches"])),
                }
            )
        except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
            raise BundleError(f"{where} is no manifest of a bundle ({error!r}): build it again") from error


def _launch(x: dict[str, Any]) -> Launch | Repeat:
    if "body" in x:
        return Repeat(**x | {"body": tuple(map(_launch, x["body"]))})
    return Launch(**x | {"arguments": _pairs(x["arguments"])})


def _pairs(values: Any) -> tuple[tuple[str, str], ...]:
    return tuple((str(a), str(b)) for a, b in values)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_bundle(folder: Path) -> tuple[Manifest, dict[str, bytes]]:
    """The manifest, and the machine code by kernel; BundleError for a missing, changed or foreign file."""
    path = folder / FILE
    if not path.is_file():
        raise BundleError(f"{path} does not exist: {folder} is no bundle; make one with pypto-models build")
    manifest = Manifest.from_json(path.read_text(), str(path))
    _read(folder / SOURCE, manifest.source_sha256)
    return manifest, {k.name: _read(folder / k.file, k.sha256) for k in manifest.kernels}


def _read(file: Path, sha256: str) -> bytes:
    if not file.is_file():
        raise BundleError(f"{file} is missing: build the bundle again")
    data = file.read_bytes()
    if digest(data) != sha256:
        raise BundleError(
            f"{file} is not the file that was built (its SHA-256 differs): build the bundle again"
        )
    return data


def is_amd(arch: str) -> bool:
    """Whether an architecture is AMD's; the others are NVIDIA's."""
    return arch.startswith("gfx")


def check_arch(manifest: Manifest, gpu: str) -> None:
    """BundleError if the machine code does not run on ``gpu``, such as ``sm_90`` or ``gfx942``."""
    arch = manifest.arch
    if is_amd(arch) != is_amd(gpu):
        arch += ", an AMD GPU" if is_amd(arch) else ", an NVIDIA GPU"
    elif gpu == (arch if is_amd(arch) else arch.rstrip("af")):
        return
    raise BundleError(
        f"{manifest.name} is built for {manifest.target} ({arch}), and this GPU is {gpu}: "
        "build it for this one"
    )
