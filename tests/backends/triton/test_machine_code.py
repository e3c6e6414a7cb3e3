"""The layers of all kinds at their published size, compiled for every GPU, and what the machine code shows.

No GPU is needed.  Everything is read from the assembly and from what the files say, not from what the
lowering says of itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import pytest

from backends.gpu.module import KernelSource, Module
from backends.gpu.toolchain import MachineCode, Refusal, Unit
from models.qwen3_5_27b.power import FULL_POWER, GDN_POWER
from models.qwen3_14b.power import POWER
from pypto_models.compile import lower_for
from pypto_models.ir.types import Mem

from ..on_gpu.catalogue import ROWS, Platform, platform
from .support import TRITON, needs_triton

pytestmark = [needs_triton, pytest.mark.slow]

NVIDIA, AMD = ("h200:triton", "gb10:triton"), ("mi300x", "mi355x")
KINDS = {f"{p.kind.model}/{p.kind.name}": p.kind for p in (POWER, FULL_POWER, GDN_POWER)}

WARP_PRODUCT = r"mma\.sync\.[\w.]+\.f32\.bf16\.bf16\.f32"
GROUP_PRODUCT = r"wgmma\.mma_async\.[\w.]+\.f32\.bf16\.bf16"
TENSOR_CORES = {  # an instruction of a product of 16-bit floats
    "h200:triton": f"{GROUP_PRODUCT}|{WARP_PRODUCT}", "gb10:triton": WARP_PRODUCT,
    "mi300x": r"v_mfma_f32_\w+_bf16", "mi355x": r"v_mfma_f32_\w+_bf16",
}  # fmt: skip
# Of 128 bits.  NVIDIA's go past the registers to shared memory
ASYNCHRONOUS = r"cp\.async\.cg\.shared\.global[^;]*, 0x10, "
WIDE_LOADS = {
    "h200:triton": ASYNCHRONOUS, "gb10:triton": ASYNCHRONOUS,
    "mi300x": "_load_dwordx4 ", "mi355x": "_load_dwordx4 |_load_lds_dwordx4 ",
}  # fmt: skip
SHARED_BYTES = {"h200:triton": 232_448, "gb10:triton": 101_376, "mi300x": 65_536, "mi355x": 163_840}
REGISTERS = dict.fromkeys(NVIDIA, 65_536) | dict.fromkeys(AMD, 4 * 512 * 64)  # 32-bit ones, of a block


@dataclass(frozen=True)
class Kernel:
    layer: str
    source: KernelSource
    code: MachineCode

    @property
    def label(self) -> str:
        return f"{self.source.name} of {self.layer}"


def modules(on: Platform) -> Iterator[tuple[str, Module]]:
    """A step of up to ROWS rows with the whole LM head, of each kind."""
    for name, kind in KINDS.items():
        options = kind.compile_options(kind.configs["full"], on.name, "full", rows=ROWS)
        compiled = lower_for(kind.kernel_for("full"), (), on.target, options["constants"], backend=TRITON)
        yield name, TRITON.lower(compiled.function, on.target, given=compiled.overrides)


@cache
def kernels(name: str) -> tuple[Kernel, ...]:
    """Every kernel of every layer, compiled in one process."""
    on, out = platform(name), []
    lowered = list(modules(on))
    units = [Unit(m.source, m.kernels) for _, m in lowered]
    compiled = TRITON.toolchain.compile_units(units, str(on.target.arch))
    for (layer, module), code in zip(lowered, compiled, strict=True):
        assert not isinstance(code, Refusal), f"{layer}: {code.kernel}: {code.message}"  # type: ignore[union-attr]
        out += [Kernel(layer, k, code[k.name]) for k in module.kernels]
    return tuple(out)


def streams(name: str) -> list[Kernel]:
    """The kernels that read a weight matrix once, by name; every layer has at least four."""
    found = [k for k in kernels(name) if k.source.how == "stream"]
    for layer in KINDS:
        assert len([k for k in found if k.layer == layer]) >= 4, layer
    return found


@pytest.mark.parametrize("name", [*NVIDIA, *AMD])
def test_every_layer_is_machine_code(name: str) -> None:
    arch = str(platform(name).target.arch)
    machine = rf"^\.target {arch}$" if name in NVIDIA else rf"^\s*\.amdgcn_target \"[\w.-]*{arch}\""
    for layer in KINDS:
        assert len([k for k in kernels(name) if k.layer == layer]) >= 10, layer
    for k in kernels(name):
        assert re.search(machine, k.code.text, re.MULTILINE), k.label
        assert k.code.binary.startswith(b"\x7fELF") and k.code.symbol.encode() in k.code.binary, k.label


@pytest.mark.parametrize("name", [*NVIDIA, *AMD])
def test_nothing_spills(name: str) -> None:
    for k in kernels(name):
        used = k.code.resources
        assert used.local_bytes == 0, k.label
        assert used.registers >= 8 and used.registers * used.threads <= REGISTERS[name], k.label


@pytest.mark.parametrize("name", [*NVIDIA, *AMD])
def test_shared_memory_fits_the_target(name: str) -> None:
    limit = platform(name).target.spaces[Mem.Mat].bytes
    assert (
        limit == {"h200": 232_448, "gb10": 101_376, "mi300x": 65_536, "mi355x": 163_840}[name.split(":")[0]]
    )
    taken = {k.label: k.code.resources.shared_bytes for k in kernels(name)}
    assert {label: n for label, n in taken.items() if n > limit} == {}
    assert max(taken.values()) > limit // 4  # they are not small by mistake


@pytest.mark.parametrize("name", [*NVIDIA, *AMD])
def test_streams_use_tensor_cores_and_wide_loads(name: str) -> None:
    for k in streams(name):
        assert re.search(TENSOR_CORES[name], k.code.text), k.label
        assert re.search(WIDE_LOADS[name], k.code.text), k.label


def test_streams_use_what_the_newest_gpus_have() -> None:
    """Hopper's products of four warps, but for two accumulators, whose weights come second; CDNA 4's loads
    past the registers, but where a product takes its weights from there."""
    others = {k.source.name for k in streams("h200:triton") if not re.search(GROUP_PRODUCT, k.code.text)}
    assert others <= {"gate_up_silu"}
    others = {k.source.name for k in streams("mi355x") if "_load_lds_dwordx4 " not in k.code.text}
    assert others <= {"lm_head", "qkv_proj"}


@pytest.mark.parametrize("name", [*NVIDIA, *AMD])
def test_attention_uses_tensor_cores(name: str) -> None:
    found = [k for k in kernels(name) if k.source.region == "attention"]
    assert len(found) == 2
    for k in found:
        assert re.search(TENSOR_CORES[name], k.code.text), k.label


@pytest.mark.parametrize("name", NVIDIA)
def test_kernels_let_the_next_begin_and_wait_for_the_last(name: str) -> None:
    for k in kernels(name):
        text = k.code.text
        assert text.count("griddepcontrol.launch_dependents") == 1, k.label
        assert text.count("griddepcontrol.wait") == 1 and k.code.resources.overlaps, k.label
    for k in streams(name):  # the first weights are asked for before that
        assert 0 <= k.code.text.find("prefetch.global.L2") < k.code.text.find("griddepcontrol.wait"), k.label


@pytest.mark.parametrize("name", AMD)
def test_kernels_on_amd_do_neither(name: str) -> None:
    for k in kernels(name):
        assert not k.code.resources.overlaps and "griddepcontrol" not in k.code.text, k.label
