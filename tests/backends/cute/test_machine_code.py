"""The examples and the tiny decode layer, compiled for both architectures, and what the machine code shows.

No GPU is needed.  Everything is read from the PTX and the cubin, not from what the lowering says of itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import pytest

from backends.cute.compiler import ALIGNMENT_SLACK, CuteToolchain
from backends.cute.lower import lower
from backends.gpu.cubin import resources
from backends.gpu.module import KernelSource, Module
from backends.gpu.toolchain import MachineCode, Refusal, Unit
from models.qwen3_14b.config import TINY
from models.qwen3_14b.constants import constants
from models.qwen3_14b.decode_layer import decode_layer_with_head
from pypto_models.compile import compile as compile_program
from pypto_models.compile import lower_for
from pypto_models.kernel_file import KernelFile
from pypto_models.target import Target, load_target

from .support import needs_cutlass, twice

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.py"))
TARGETS = ("h200", "gb10")
GB10_BLOCK = 101_376  # bytes of shared memory

pytestmark = needs_cutlass


@dataclass(frozen=True)
class Kernel:
    source: KernelSource
    code: MachineCode
    target: Target

    @property
    def label(self) -> str:
        return f"{self.source.name} for {self.target.name}"


def modules(target: Target) -> Iterator[Module]:
    for path in EXAMPLES:
        file = KernelFile.load(path)
        for kernel in file.entries:
            given = file.constants(kernel, target.name)
            yield lower(lower_for(kernel, (), target, given).function, target)
    given = constants(TINY, target.name, head_rows=TINY.vocab_padded)
    yield lower(lower_for(decode_layer_with_head, (), target, given).function, target)


@cache
def kernels(name: str) -> tuple[Kernel, ...]:
    """Every kernel of every program, compiled in one process."""
    target = load_target(name)
    lowered = list(modules(target))
    units = [Unit(m.source, m.kernels) for m in lowered]
    out = []
    compiled = CuteToolchain().compile_units(units, str(target.arch))
    for module, code in zip(lowered, compiled, strict=True):
        if isinstance(code, Refusal):
            raise AssertionError(f"{module.name}: {code.kernel}: {code.message}")
        out += [Kernel(k, code[k.name], target) for k in module.kernels]
    return tuple(out)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
class TestPrograms:
    def test_they_are_machine_code_of_the_architecture(self, name: str) -> None:
        assert len(kernels(name)) >= len(EXAMPLES) + 9
        for k in kernels(name):
            assert f".target {k.target.arch}" in k.code.text, k.label
            assert k.code.binary.startswith(b"\x7fELF") and k.code.symbol.encode() in k.code.binary, k.label

    def test_nothing_spills(self, name: str) -> None:
        for k in kernels(name):
            assert ".local" not in k.code.text, k.label
            used = resources(k.code.binary)
            # Exact divisions and roots keep two registers while they call a slow path: no lack of them
            exact = re.search(r"(div|rcp|sqrt)\.rn\.f32", k.code.text)
            frame = 8 if exact and used.registers < 64 else 0
            assert used.local_bytes <= frame and 8 <= used.registers <= 255, k.label
            assert used.registers * k.source.threads <= 65536, k.label

    def test_streams_use_tensor_cores_and_16_byte_asynchronous_copies(self, name: str) -> None:
        streams = [k for k in kernels(name) if k.source.how == "stream"]
        assert len(streams) >= 6
        for k in streams:
            assert "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" in k.code.text, k.label
            assert re.search(r"cp\.async\.cg\.shared\.global[^;]* 16[,;]", k.code.text), k.label

    def test_shared_memory_is_what_the_plan_says(self, name: str) -> None:
        for k in kernels(name):
            if name == "gb10" and k.source.shared_bytes:
                assert k.source.shared_bytes + ALIGNMENT_SLACK <= GB10_BLOCK, k.label
            if k.source.how == "stream":
                assert k.source.shared_bytes == stream_bytes(k.source), k.label


def stream_bytes(k: KernelSource) -> int:
    """What the device code allocates for an emitted stream, in buffers of whole 128-byte lines: the ring, by
    the class that runs on the device, and for a norm the scales of its rows and the columns in flight.
    """
    from backends.cute.device.stream import M, Stream

    call = re.search(r"stream\.Stream\((.*?)\)\.run\((.*)\)", k.text)
    assert call is not None
    given = dict(re.findall(r"(\w+)=(\w+)", call[1]))
    values = {f.name: int(v) for f in fields(Stream) if (v := given.get(f.name, "")).isdigit()}
    assert {"k", "columns", "ctas", "chunk", "stages"} <= set(values)
    stream = Stream(**values, late=False, weight_row=print, finish=print)
    columns = re.search(r"x_columns=(\w+)", call[2])
    per_column = {"pointer:BF16": 2, "pointer:FP32": 4}[dict(k.parameters)[columns[1]]] if columns else 0
    norm = (stream.stages * stream.chunk * per_column, 4 * stream.scales * stream.m_tiles * M)
    return sum(-(-size // 128) * 128 for size in (2 * stream.shared_elements, *norm))


# --------------------------------------------------------------------------------------- one small program
def test_a_program_is_compiled_where_there_is_no_gpu(tmp_path: Path) -> None:
    executable = compile_program(twice, platform="gb10").executable
    (row,) = executable.kernels  # type: ignore[attr-defined]
    assert (row.name, row.threads, row.local_bytes) == ("twice_2", 256, 0) or row.name == "twice"
    assert 8 <= row.registers <= 255 and row.code_bytes == len(executable.binaries[row.name])  # type: ignore[attr-defined]
    executable.save(tmp_path)  # type: ignore[attr-defined]
    assert (tmp_path / f"{row.name}.cubin").read_bytes().startswith(b"\x7fELF")


def test_what_the_compiler_refuses_is_reported_for_its_program_alone() -> None:
    head = "import cutlass.cute as cute\n\n\n@cute.jit\ndef launch_k():\n    "
    kernel = KernelSource("k", "k", 1, "", 256, 0, "block by block", ())
    bad, good = Unit(f"{head}no_such_function()\n", [kernel]), Unit("", [])
    refusal, nothing = CuteToolchain().compile_units([bad, good], "sm_90a")
    assert isinstance(refusal, Refusal) and refusal.kernel == "k"
    assert "no_such_function" in refusal.message
    assert nothing == {}


def test_resources_of_something_else() -> None:
    with pytest.raises(ValueError, match="it is no 64-bit ELF file"):
        resources(b"PK\x03\x04")
