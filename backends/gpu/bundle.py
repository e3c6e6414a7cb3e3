"""A program with its machine code, in memory and as a folder: machine code, emitted source, manifest."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from pypto_models.errors import Diag, Span, user_error
from pypto_models.ir.graph import dim_text
from pypto_models.ir.nodes import Direction, Function
from pypto_models.ir.types import INT64, Mem, ScalarType, TensorType
from pypto_models.language.entry import written_params
from pypto_models.target import Target

from .manifest import FILE, SOURCE, SUFFIXES, KernelEntry, Manifest, Parameter, digest
from .module import Module, count
from .timing import EVENTS, STAMPED, STAMPS
from .toolchain import MachineCode, Toolchain

_DIRECTIONS = {Direction.IN: "in", Direction.OUT: "out", Direction.INOUT: "inout"}


class Built(NamedTuple):
    """``binaries`` by kernel name."""

    manifest: Manifest
    binaries: dict[str, bytes]
    module: Module


def assemble(
    toolchain: Toolchain,
    function: Function,
    target: Target,
    module: Module,
    code: Mapping[str, MachineCode],
) -> Built:
    """A lowered function with the machine code of its kernels.

    Raises UserError, with the line of the region, if one takes more shared memory than a block of the target
    has.
    """
    limit = target.spaces[Mem.Mat].bytes
    for k in module.kernels:
        if (taken := code[k.name].resources.shared_bytes) > limit:
            why = f"it takes {taken} bytes of shared memory, and a block of {target.name} has {limit}"
            where = Span(function.span.file, k.line)
            raise user_error(
                Diag.BACKEND_OP, where, op=f"region {k.region}", backend=toolchain.name, why=why,
                fix="use smaller tiles",
            )  # fmt: skip
    suffix = toolchain.suffix(str(target.arch))
    kernels = tuple(
        KernelEntry(
            name=k.name, region=k.region, line=k.line, how=k.how, file=f"{k.name}.{suffix}",
            symbol=code[k.name].symbol, sha256=digest(code[k.name].binary), parameters=k.parameters,
            **asdict(code[k.name].resources),
        )
        for k in module.kernels
    )  # fmt: skip
    versions = dict(toolchain.versions())
    manifest = without_code(toolchain, function, target, module)
    manifest = replace(manifest, kernels=kernels, versions=versions)
    return Built(manifest, {name: c.binary for name, c in code.items()}, module)


def without_code(toolchain: Toolchain, function: Function, target: Target, module: Module) -> Manifest:
    """What there is to know of a lowered function before its kernels are compiled."""
    return Manifest(
        name=module.name, backend=toolchain.name, target=target.name, arch=str(target.arch),
        parameters=(*parameters(function), *stamps_of(module)),
        workspaces=module.workspaces, kernels=(), launches=module.launches,
        source_sha256=digest(module.source.encode()), early=module.early, fenced=module.fenced,
    )  # fmt: skip


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


def save(folder: Path, manifest: Manifest, binaries: Mapping[str, bytes], source: str) -> None:
    """Write a bundle.  The manifest goes first and comes last: an interrupted one is not taken for whole."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).unlink(missing_ok=True)
    for old in folder.iterdir():  # of a program that was here before
        if old.suffix in SUFFIXES:
            old.unlink()
    for k in manifest.kernels:
        (folder / k.file).write_bytes(binaries[k.name])
    (folder / SOURCE).write_bytes(source.encode())
    aside = folder / f"{FILE}.new"
    aside.write_text(manifest.to_json())
    os.replace(aside, folder / FILE)
