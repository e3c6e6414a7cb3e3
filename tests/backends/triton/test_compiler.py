"""Triton's compiler in its own process, for every GPU: what it makes, as the assembly and the files say."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from backends.gpu.module import KernelSource
from backends.gpu.toolchain import MachineCode, Refusal, Results, Unit, compile_unit
from backends.triton.binary import amd_resources, extra_pointers
from backends.triton.compiler import GPUS, TritonToolchain, environment
from pypto_models.errors import InternalError, UserError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed: the extra triton"
)

WARP = {"sm_90a": 32, "sm_121a": 32, "gfx942": 64, "gfx950": 64}
CUDA, AMD = ("sm_90a", "sm_121a"), ("gfx942", "gfx950")
MACHINE = {"sm_90a": 190, "sm_121a": 190, "gfx942": 224, "gfx950": 224}  # of the ELF format

SOURCE = '''
import triton
import triton.language as tl
from triton.language.extra import cuda


@triton.jit
def product(a, b, o, n, scale, big):
    m = tl.arange(0, 16)[:, None]
    c = tl.arange(0, 64)[:, None]
    k = tl.arange(0, 64)[None, :]
    total = tl.zeros((16, 64), tl.float32)
    for i in range(0, n, 64):
        total = tl.dot(tl.load(a + m * 512 + i + k), tl.trans(tl.load(b + c * 512 + i + k)), total)
    if big > 2147483648:
        total = total * scale
    tl.store(o + m * 64 + k, total)


@triton.jit
def copy(x, y):
    tl.store(y + tl.arange(0, 512), tl.load(x + tl.arange(0, 512)))


@triton.jit
def masked(keep, x):
    i = tl.arange(0, 512)
    tl.store(x + i, tl.load(x + i), mask=tl.load(keep + i))


@triton.jit
def shuffled(x, y):
    i = tl.arange(0, 32768)
    tl.store(y + i, tl.gather(tl.load(x + i), i * 7 % 32768, 0))


@triton.jit
def crowded(x, y):
    i = tl.arange(0, 32768)
    tl.store(y + i, tl.gather(tl.load(x + i), i * 7 % 32768, 0))


@triton.jit
def late(x, y):
    cuda.gdc_wait()
    tl.store(y, tl.load(x))


@triton.jit
def odd_range(x, y):
    tl.store(y + tl.arange(0, 96), tl.load(x + tl.arange(0, 96)))


@triton.jit
def described(x, y):
    tile = tl.make_tensor_descriptor(x, [32, 64], [64, 1], [16, 64])
    rows, columns = tl.arange(0, 16)[:, None], tl.arange(0, 64)[None, :]
    tl.store(y + rows * 64 + columns, tile.load([16, 0]))
'''  # fmt: skip

PAIR = (("x", "pointer:FP32"), ("y", "pointer:FP32"))


def kernel(name: str, parameters: tuple[tuple[str, str], ...] = PAIR, **options: int) -> KernelSource:
    return KernelSource(name, name, 1, "", 0, 0, "", parameters, options=tuple(options.items()))


PRODUCT = kernel(
    "product",
    (
        ("a", "pointer:BF16"), ("b", "pointer:BF16"), ("o", "pointer:FP32"),
        ("n", "Int32"), ("scale", "Float32"), ("big", "Int64"),
    ),
    num_warps=8, num_stages=2,
)  # fmt: skip
MASKED = kernel("masked", (("keep", "pointer:BOOL"), ("x", "pointer:UINT16")))


@dataclass(frozen=True)
class Run:
    """What one process made of some kernels, of one that waits, and of one that waits and may start early."""

    results: Results
    progress: list[tuple[int, int, str]]


@cache
def run(arch: str) -> Run:
    few_registers = {"maxnreg": 32} if arch in CUDA else {"waves_per_eu": 8}
    good = [PRODUCT, kernel("copy"), MASKED, kernel("shuffled"), kernel("crowded", **few_registers)]
    units = [Unit(SOURCE, k) for k in (good, [kernel("late")], [kernel("late", launch_pdl=1)])]
    progress: list[tuple[int, int, str]] = []
    results = TritonToolchain().compile_units(units, arch, lambda *step: progress.append(step))
    return Run(results, progress)


def good(arch: str) -> dict[str, MachineCode]:
    made = run(arch).results[0]
    assert isinstance(made, dict), made
    return made


# ------------------------------------------------------------------------------------------ what comes out
@pytest.mark.parametrize("arch", GPUS)
def test_machine_code(arch: str) -> None:
    made = good(arch)["product"]
    assert made.binary[:4] == b"\x7fELF"
    assert int.from_bytes(made.binary[18:20], "little") == MACHINE[arch]
    assert made.symbol == "product"
    entry = r"^\.visible \.entry product\(" if arch in CUDA else r"^\s+\.symbol:\s+product\.kd$"
    assert re.search(entry, made.text, re.MULTILINE)
    used = made.resources
    assert used.threads == 8 * WARP[arch]
    # Two stages of 16 and 64 rows of 64 numbers of two bytes; gfx950 keeps one of them in registers.
    assert 64 * 64 * 2 <= used.shared_bytes <= 2 * (16 + 64) * 64 * 2 + 1024
    assert 16 <= used.registers <= 256
    assert (used.local_bytes, used.overlaps) == (0, False)
    assert good(arch)["copy"].resources.shared_bytes == 0


@pytest.mark.parametrize("arch", CUDA)
def test_parameters_of_a_cuda_kernel(arch: str) -> None:
    """The declared ones in order, then two pointers that the launcher gives."""
    for name, sizes in {"product": "u64 u64 u64 u32 f32 u64", "masked": "u64 u64"}.items():
        made = good(arch)[name]
        assert re.findall(r"\.param \.(\w+) .*_param_\d+", made.text) == [*sizes.split(), "u64", "u64"]
        assert made.resources.extra_pointers == 2


@pytest.mark.parametrize("arch", AMD)
def test_parameters_of_an_amd_kernel(arch: str) -> None:
    """Those that follow as "hidden" are the driver's to give."""
    made = good(arch)["product"]
    listed = re.findall(r"\.offset:\s+(\d+)\n\s+\.size:\s+(\d+)\n\s+\.value_kind:\s+(\w+)", made.text)
    given = [(int(at), int(size)) for at, size, kind in listed if not kind.startswith("hidden_")]
    assert given == [(0, 8), (8, 8), (16, 8), (24, 4), (28, 4), (32, 8), (40, 8), (48, 8)]
    assert made.resources.extra_pointers == 2


@pytest.mark.parametrize("arch", GPUS)
def test_pointers_are_taken_as_aligned(arch: str) -> None:
    """A thread moves its elements, 4 or 2, at once."""
    wide = r"ld\.global\.v4\.b32" if arch in CUDA else r"buffer_load_dwordx2 "
    assert re.search(wide, good(arch)["copy"].text)


@pytest.mark.parametrize("arch", GPUS)
def test_more_shared_memory_than_there_is_compiles_and_is_told(arch: str) -> None:
    assert good(arch)["shuffled"].resources.shared_bytes == 32768 * 4


@pytest.mark.parametrize("arch", GPUS)
def test_few_registers_spill(arch: str) -> None:
    free, crowded = (good(arch)[name].resources for name in ("shuffled", "crowded"))
    assert crowded.registers <= (32 if arch in CUDA else 64) < free.registers
    assert crowded.local_bytes > free.local_bytes


@pytest.mark.parametrize("arch", AMD)
def test_resources_of_an_amd_kernel(arch: str) -> None:
    """As the assembler was told."""
    for made in good(arch).values():
        directives = dict(re.findall(r"\.amdhsa_(\w+) (\d+)", made.text))
        assert made.resources.registers == int(directives["next_free_vgpr"])
        assert made.resources.local_bytes == int(directives["private_segment_fixed_size"])
        assert b".vgpr_count" in made.binary  # the note that the driver reads


@pytest.mark.parametrize("arch", CUDA)
def test_a_kernel_that_waits_overlaps_if_it_is_to(arch: str) -> None:
    _, alone, early = run(arch).results
    assert isinstance(alone, dict) and isinstance(early, dict)
    assert not alone["late"].resources.overlaps
    assert early["late"].resources.overlaps
    assert "griddepcontrol.wait" in early["late"].text


@pytest.mark.parametrize("arch", GPUS)
def test_progress_counts_kernels_refused_ones_too(arch: str) -> None:
    names = ("product", "copy", "masked", "shuffled", "crowded", "late", "late")
    assert run(arch).progress == [(i, 7, name) for i, name in enumerate(names, 1)]


# ---------------------------------------------------------------------------------------------- refusals
def test_refusals_name_the_reason() -> None:
    reasons = {
        kernel("odd_range"): "arange's range must be a power of 2",
        kernel("described"): "128 bytes of global memory for each block",
        kernel("copy", launch_pdl=1): "never waits for them",
        kernel("copy", num_warpz=4): "no option num_warpz for 90; it has num_warps, ",
        kernel("copy", PAIR[::-1]): "its parameters are ['x', 'y'], not ['y', 'x']",
        kernel("copy", (("x", "pointer:FP8"), PAIR[1])): "parameters of the kind pointer:FP8",
        kernel("copy", (("x", "Float64"), PAIR[1])): "parameters of the kind Float64",
        kernel("absent"): "no attribute 'absent'",
    }
    units = [Unit(SOURCE, [k]) for k in reasons]
    units.append(Unit(SOURCE, [kernel("copy"), kernel("odd_range")]))
    *results, last = TritonToolchain().compile_units(units, "sm_90a")
    for (k, reason), result in zip(reasons.items(), results, strict=True):
        assert isinstance(result, Refusal), k.name
        assert result.kernel == k.name
        assert reason in result.message
    assert isinstance(last, Refusal) and last.kernel == "odd_range"


@pytest.mark.parametrize("arch", AMD)
def test_a_refusal_by_mlir_names_the_operation(arch: str) -> None:
    """The exception says only that a pass failed."""
    _, waiting, early = run(arch).results
    assert isinstance(waiting, Refusal) and isinstance(early, Refusal)
    assert "error: failed to legalize operation 'tt.grid_dependency_wait'" in waiting.message
    assert f"no option launch_pdl for {arch}" in early.message


def test_an_unknown_architecture() -> None:
    with pytest.raises(ValueError, match="compiles for sm_90a, sm_121a, gfx942, gfx950; not for gfx803"):
        TritonToolchain().compile_units([Unit(SOURCE, [kernel("copy")])], "gfx803")
    with pytest.raises(ValueError, match="not for sm_50"):
        TritonToolchain().suffix("sm_50")
    assert [TritonToolchain().suffix(a) for a in GPUS] == ["cubin", "cubin", "hsaco", "hsaco"]


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'pypto-models[triton]'" in str(TritonToolchain().missing())
    with pytest.raises(UserError, match="compiling for gfx942 needs triton"):
        TritonToolchain().compile_units([Unit(SOURCE, [kernel("copy")])], "gfx942")


def test_a_process_that_dies_is_an_internal_error() -> None:
    source = "import os, sys\nprint('the end', file=sys.stderr, flush=True)\nos._exit(3)\n"
    with pytest.raises(InternalError, match=r"(?s)ended with status 3:.*the end"):
        TritonToolchain().compile_units([Unit(source, [kernel("copy")])], "sm_90a")


# -------------------------------------------------------------------------------------------- the process
def test_machine_code_follows_from_the_source_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not from the caller's options for Triton, its home or a temporary folder; and no file is left."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in {"INTERPRET": "1", "OVERRIDE_ARCH": "sm80", "DEFAULT_FP_FUSION": "0"}.items():
        monkeypatch.setenv(f"TRITON_{name}", value)
    again = compile_unit(TritonToolchain(), Unit(SOURCE, [PRODUCT]), "sm_90a")["product"]
    assert again == good("sm_90a")["product"]
    assert b"emitted_0" not in again.binary
    assert list(tmp_path.iterdir()) == []


def test_the_environment_keeps_what_is_not_triton() -> None:
    made = environment({"PATH": "here", "TRITON_INTERPRET": "1"}, Path("folder"))
    assert made["PATH"] == "here"
    assert "TRITON_INTERPRET" not in made
    assert made["TRITON_CACHE_DIR"] == "folder/cache"


# ----------------------------------------------------------------------------------------------- assembly
def test_assembly_that_is_not_understood() -> None:
    text = good("gfx942")["copy"].text
    with pytest.raises(ValueError, match="metadata of 0 kernels"):
        amd_resources(good("sm_90a")["copy"].text)
    with pytest.raises(ValueError, match=r"says \.vgpr_count 0 times"):
        amd_resources(text.replace(".vgpr_count:", ".count:"))
    with pytest.raises(ValueError, match="2 kernels"):
        extra_pointers(good("sm_90a")["copy"].text * 2, 2)


@pytest.mark.parametrize("arch", ["sm_121a", "gfx950"])
def test_extra_parameters_are_pointers_and_none_is_missing(arch: str) -> None:
    text = good(arch)["product"].text
    assert [extra_pointers(text, declared) for declared in (5, 6, 8)] == [3, 2, 0]
    for declared in (4, 9):  # the fifth has four bytes; there are eight
        with pytest.raises(ValueError, match=f"not {declared} declared ones and then pointers"):
            extra_pointers(text, declared)


CLOCK = """
import triton
import triton.language as tl


@triton.jit
def clock(x):
    tl.store(x, tl.extra.cuda.globaltimer())
"""


def test_an_error_that_llvm_goes_on_after_is_a_refusal() -> None:
    """The register of NVIDIA's clock: AMD's code generator reports it, and gives a kernel all the same."""
    wanted = KernelSource("clock", "clock", 1, "", 256, 0, "", (("x", "pointer:INT64"),))
    amd, nvidia = (
        TritonToolchain().compile_units([Unit(CLOCK, [wanted])], arch)[0] for arch in ("gfx942", "sm_90a")
    )
    assert isinstance(amd, Refusal) and "could not allocate output register" in amd.message
    assert not isinstance(nvidia, Refusal) and "globaltimer" in nvidia["clock"].text
