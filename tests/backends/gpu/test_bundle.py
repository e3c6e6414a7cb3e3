"""Bundles: what was saved is what is loaded, and anything else is refused by name.  No GPU, no CUTLASS."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from backends.cute.compiler import CuteToolchain
from backends.gpu.bundle import assemble, save
from backends.gpu.manifest import (
    FORMAT,
    BundleError,
    KernelEntry,
    Launch,
    Manifest,
    Parameter,
    Workspace,
    check_arch,
    digest,
    read_bundle,
)
from backends.gpu.program import GpuProgram
from backends.gpu.runtime import Loaded, NoDevice
from backends.gpu.toolchain import MachineCode, Resources
from pypto_models.compile import compile as compile_program
from pypto_models.compile import lower_for
from pypto_models.errors import UserError
from pypto_models.target import load_target

from ..cute.support import module_of, needs_cutlass, twice, two_regions

SOURCE = module_of(twice).source
CUBIN = b"machine code"
MANIFEST = Manifest(
    "twice", "cute", "h200", "sm_90a",
    parameters=(
        Parameter("x", "tensor", "in", "float32", ("ROWS", "64")),
        Parameter("y", "tensor", "out", "float32", ("ROWS", "64"), private=False),
    ),
    workspaces=(Workspace("scratch", "bfloat16", ("ROWS", "8")),),
    kernels=(
        KernelEntry(
            "twice", "twice", 30, "block by block", "twice.cubin", "kernel_twice", digest(CUBIN),
            parameters=(("x", "pointer:FP32"), ("y", "pointer:FP32"), ("ROWS", "Int32")),
            threads=256, shared_bytes=2048, registers=32, local_bytes=0, overlaps=True,
        ),
    ),
    launches=(
        Launch("twice", "(ROWS + 15) // 16", (("pointer", "x"), ("pointer", "y"), ("extent", "ROWS"))),
    ),
    source_sha256=digest(SOURCE.encode()), versions={"python": "3.11.0"},
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "bundle", MANIFEST, {"twice": CUBIN}, SOURCE)
    return tmp_path / "bundle"


def test_what_is_saved_is_what_is_read(folder: Path) -> None:
    assert read_bundle(folder) == (MANIFEST, {"twice": CUBIN})
    assert {p.name for p in folder.iterdir()} == {"manifest.json", "kernels.py", "twice.cubin"}
    assert (folder / "kernels.py").read_text() == SOURCE


def test_a_second_bundle_replaces_the_first(folder: Path) -> None:
    (entry,) = MANIFEST.kernels
    other = replace(entry, name="other", file="other.cubin", sha256=digest(b"2"))
    save(folder, replace(MANIFEST, name="other", kernels=(other,)), {"other": b"2"}, SOURCE)
    assert read_bundle(folder)[0].name == "other"
    assert not (folder / "twice.cubin").exists()


def missing_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def missing_cubin(folder: Path) -> None:
    (folder / "twice.cubin").unlink()


def changed_cubin(folder: Path) -> None:
    (folder / "twice.cubin").write_bytes(CUBIN + b"!")


def changed_source(folder: Path) -> None:
    (folder / "kernels.py").write_text(SOURCE + "\n")


def changed_manifest(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        data = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**data, **values}))

    return change


def no_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def no_object(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (missing_manifest, "manifest.json does not exist: .* is no bundle"),
    "no cubin": (missing_cubin, "twice.cubin is missing: build the bundle again"),
    "hash": (changed_cubin, r"twice.cubin is not the file that was built \(its SHA-256 differs\)"),
    "source": (changed_source, r"kernels.py is not the file that was built \(its SHA-256 differs\)"),
    "version": (changed_manifest(format=FORMAT + 1), f"has format {FORMAT + 1}, this version reads {FORMAT}"),
    "unknown field": (changed_manifest(colour="red"), "is no manifest of a bundle .*colour"),
    "no json": (no_json, "is no manifest of a bundle"),
    "no object": (no_object, "is no manifest of a bundle"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_bundle_is_refused_by_name(folder: Path, damage: str) -> None:
    change, why = DAMAGE[damage]
    change(folder)
    with pytest.raises(BundleError, match=why):
        Loaded.open(folder)


@pytest.mark.parametrize(
    ("arch", "gpu"),
    [("sm_90a", "sm_90"), ("sm_121a", "sm_121"), ("sm_120f", "sm_120"), ("sm_80", "sm_80")],
)
def test_the_architecture(arch: str, gpu: str) -> None:
    manifest = replace(MANIFEST, arch=arch)
    check_arch(manifest, gpu)
    why = rf"twice is built for h200 \({arch}\), and this GPU is sm_100: build it for this one"
    with pytest.raises(BundleError, match=why):
        check_arch(manifest, "sm_100")


def test_the_architecture_of_the_other_vendor() -> None:
    manifest = replace(MANIFEST, target="mi300x", arch="gfx942")
    check_arch(manifest, "gfx942")
    with pytest.raises(BundleError, match=r"built for mi300x \(gfx942\), and this GPU is gfx950"):
        check_arch(manifest, "gfx950")
    with pytest.raises(BundleError, match=r"for mi300x \(gfx942, an AMD GPU\), and this GPU is sm_90"):
        check_arch(manifest, "sm_90")
    with pytest.raises(BundleError, match=r"for h200 \(sm_90a, an NVIDIA GPU\), and this GPU is gfx942"):
        check_arch(MANIFEST, "gfx942")


@needs_cutlass  # its version is in the manifest
def test_a_kernel_that_fits_in_no_block_is_refused() -> None:
    """Triton plans the shared memory of a kernel itself."""
    gb10 = load_target("gb10")
    function = lower_for(twice, (), gb10).function
    for size in (101_376, 101_377):
        code = {"twice": MachineCode(b"", "", "twice", Resources(256, size, 32, 0))}
        if size == 101_376:
            assemble(CuteToolchain(), function, gb10, module_of(twice, "gb10"), code)
            continue
        with pytest.raises(
            UserError, match="takes 101377 bytes of shared memory, and a block of gb10 has 101376"
        ):
            assemble(CuteToolchain(), function, gb10, module_of(twice, "gb10"), code)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_program_says_so(folder: Path) -> None:
    why = r"twice is compiled for h200 \(sm_90a\) and cannot run here: torch .*h200sim"
    with pytest.raises(NoDevice, match=why):
        Loaded.open(folder)
    program = GpuProgram(MANIFEST, {"twice": CUBIN}, SOURCE)
    with pytest.raises(NoDevice, match=why):
        program({"x": torch.ones(4, 64), "y": torch.zeros(4, 64)})


def test_a_program_comes_from_its_bundle(folder: Path) -> None:
    """Nothing is compiled: the machine code is what the folder holds."""
    program = compile_program(twice, platform="h200", backend_options={"bundle": str(folder)})
    executable = program.executable
    assert isinstance(executable, GpuProgram)
    assert executable.binaries == {"twice": CUBIN} and executable.source == SOURCE
    assert program.device == "cuda"


def test_a_bundle_of_something_else_is_refused(folder: Path) -> None:
    options = {"bundle": str(folder)}
    with pytest.raises(BundleError, match="holds twice for h200, not two_regions for h200: give its own"):
        compile_program(two_regions, platform="h200", backend_options=options)
    with pytest.raises(BundleError, match="holds twice for h200, not twice for gb10"):
        compile_program(twice, platform="gb10", backend_options=options)
    manifest, binaries = read_bundle(folder)
    save(folder, replace(manifest, backend="another"), binaries, SOURCE)
    with pytest.raises(BundleError, match="holds twice by the backend another, not cute: give its own"):
        compile_program(twice, platform="h200", backend_options=options)
    save(folder, manifest, binaries, SOURCE)
    with pytest.raises(BundleError, match="was built from another source of twice, or other constants"):
        compile_program(twice, platform="h200", constants={"SCALE": 3.0}, backend_options=options)


def test_loading_imports_no_compiler(folder: Path) -> None:
    """A serving machine needs torch, and cuda-bindings once it launches."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom backends.gpu import runtime\n"
        "from backends.gpu.manifest import read_bundle\n"
        f"read_bundle(Path({str(folder)!r}))\n"
        "print([m for m in ('cutlass', 'triton') if m in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
