"""A program with its machine code, in memory and as a folder: cubins, emitted source, manifest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from pypto_models.ir.graph import dim_text
from pypto_models.ir.nodes import Direction, Function
from pypto_models.ir.types import INT64, ScalarType, TensorType
from pypto_models.language.entry import written_params
from pypto_models.schedule import Override
from pypto_models.target import Target

from .cache import compiler_versions, machine_code
from .compiler import MachineCode, Progress
from .cubin import resources
from .lower import lower
from .manifest import FILE, SOURCE, KernelEntry, Manifest, Parameter, digest
from .module import Module, count
from .timing import EVENTS, STAMPED, STAMPS

_DIRECTIONS = {Direction.IN: "in", Direction.OUT: "out", Direction.INOUT: "inout"}
ALIGNMENT_SLACK = 1024  # bytes that the allocator in a kernel may skip to align what it gives


class Built(NamedTuple):
    """``cubins`` by kernel name."""

    manifest: Manifest
    cubins: dict[str, bytes]
    module: Module


def build(
    function: Function,
    target: Target,
    progress: Progress | None = None,
    timing: bool = False,
    given: Mapping[str, Override] | None = None,
) -> Built:
    """Lower a function for a GPU and compile it, or take its kernels from the cache.

    ``timing`` and ``given`` as for :func:`~.lower.lower`.
    """
    module = lower(function, target, timing, given)
    return assemble(function, target, module, machine_code(module, str(target.arch), progress))


def assemble(function: Function, target: Target, module: Module, code: Mapping[str, MachineCode]) -> Built:
    """A lowered function with the machine code of its kernels."""
    kernels = []
    for k in module.kernels:
        cubin = code[k.name].cubin
        used = resources(cubin)
        kernels.append(
            KernelEntry(
                name=k.name, region=k.region, line=k.line, how=k.how, file=f"{k.name}.cubin",
                symbol=code[k.name].symbol, sha256=digest(cubin), threads=k.threads,
                shared_bytes=k.shared_bytes + ALIGNMENT_SLACK if k.shared_bytes else 0,
                registers=used.registers, local_bytes=used.local_bytes, parameters=k.parameters,
            )
        )  # fmt: skip
    manifest = Manifest(
        name=module.name, target=target.name, arch=str(target.arch),
        parameters=(*parameters(function), *stamps_of(module)),
        workspaces=module.workspaces,
        kernels=tuple(kernels),
        launches=module.launches,
        source_sha256=digest(module.source.encode()), early=module.early, fenced=module.fenced,
        versions=compiler_versions(),
    )  # fmt: skip
    return Built(manifest, {name: c.cubin for name, c in code.items()}, module)


def parameters(function: Function) -> tuple[Parameter, ...]:
    """The arguments of a program."""
    written = written_params(function)
    out = []
    for p in function.params:
        t = p.var.type
        direction = _DIRECTIONS[p.direction]
        if isinstance(t, TensorType):
            shape = tuple(dim_text(d) for d in t.shape)
            private = direction == "in" and p.var in written
            out.append(Parameter(p.name, "tensor", direction, str(t.dtype.torch_name), shape, private))
        else:
            assert isinstance(t, ScalarType)
            out.append(Parameter(p.name, "scalar", "in", str(t.dtype.torch_name)))
    return tuple(out)


def stamps_of(module: Module) -> tuple[Parameter, ...]:
    """The further output of a timing build, see timing.py; none otherwise."""
    if not any((STAMPS, f"pointer:{INT64.name}") in k.parameters for k in module.kernels):
        return ()
    shape = (str(count(module.launches)), str(STAMPED), str(EVENTS))
    return (Parameter(STAMPS, "tensor", "out", "int64", shape),)


def save(folder: Path, manifest: Manifest, cubins: dict[str, bytes], source: str) -> None:
    """Write a bundle.  The manifest goes first and comes last: an interrupted one is not taken for whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).unlink(missing_ok=True)
    for old in folder.glob("*.cubin"):  # of a program that was here before
        old.unlink()
    for k in manifest.kernels:
        (folder / k.file).write_bytes(cubins[k.name])
    (folder / SOURCE).write_bytes(source.encode())
    aside = folder / f"{FILE}.new"
    aside.write_text(manifest.to_json())
    os.replace(aside, folder / FILE)
