"""Launching: what reaches the driver of either vendor, with a stand-in for it.  No GPU."""

from __future__ import annotations

import ctypes
import re
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from backends.gpu import driver as drivers
from backends.gpu import runtime
from backends.gpu.driver import CudaDriver, HipDriver, LaunchError, Value, driver_for
from backends.gpu.manifest import KernelEntry, Launch, Manifest, Parameter, Workspace
from backends.gpu.program import GpuProgram
from backends.gpu.runtime import InFlight, Loaded, NoDevice, no_device

PARAMETERS = (
    ("n", "Int32"), ("x", "pointer:BF16"), ("factor", "Float32"), ("back", "Int32"), ("far", "Int64"),
)  # fmt: skip
VALUES: list[Value] = [
    ("Int32", 7), ("pointer:BF16", 2**40 + 16), ("Float32", 1.5), ("Int32", -3), ("Int64", -(2**40)),
    ("pointer", 0),
]  # fmt: skip
KERNEL = KernelEntry(
    "scale", "scale", 1, "block by block", "scale.cubin", "scale_0", "", PARAMETERS,
    threads=256, shared_bytes=4096, registers=32, local_bytes=0, extra_pointers=1, overlaps=True,
)  # fmt: skip


# -------------------------------------------------------------------------------------------------- CUDA
class Cuda:
    """cuda.bindings.driver, whose calls are noted instead: its structures are the real ones."""

    def __init__(self, status: int = 0) -> None:
        self.real = pytest.importorskip("cuda.bindings.driver")
        self.status = status
        self.calls: list[tuple[Any, ...]] = []
        self.cells: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def cuModuleLoadData(self, binary: bytes) -> tuple[int, str]:
        self.calls.append(("load", binary))
        return self.status, "module"

    def cuModuleGetFunction(self, module: str, name: bytes) -> tuple[int, str]:
        self.calls.append(("find", module, name))
        return self.status, "function"

    def cuFuncSetAttribute(self, function: str, attribute: Any, value: int) -> tuple[int]:
        self.calls.append(("set", function, attribute.name, value))
        return (self.status,)

    def cuLaunchKernelEx(self, config: Any, function: str, values: int, extra: int) -> tuple[int]:
        early = config.attrs[0].value.programmaticStreamSerializationAllowed
        self.calls.append(
            (function, config.gridDimX, config.blockDimX, config.sharedMemBytes, int(config.hStream), early)
        )
        assert extra == 0 and config.numAttrs == 1 and config.gridDimY == config.blockDimZ == 1
        addresses = (ctypes.c_void_p * len(VALUES)).from_address(values)
        self.cells = [ctypes.string_at(a, 8) for a in addresses]
        return (self.status,)


def cuda(api: Cuda) -> CudaDriver:
    out = CudaDriver.__new__(CudaDriver)
    out.api = api
    return out


def test_a_kernel_of_cuda_is_loaded_with_its_shared_memory() -> None:
    api = Cuda()
    assert cuda(api).load(KERNEL, b"code") == "function"
    limit = "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"
    found = [("load", b"code"), ("find", "module", b"scale_0"), ("set", "function", limit, 4096)]
    assert api.calls == found


@pytest.mark.parametrize("overlap", [False, True])
def test_a_launch_of_cuda(overlap: bool) -> None:
    api = Cuda()
    cuda(api).launch("function", KERNEL, 3, VALUES, 77, overlap)
    assert api.calls == [("function", 3, 256, 4096, 77, int(overlap))]
    n, x, factor, back, far, nothing = api.cells
    assert (n[:4], factor[:4], back[:4]) == (struct.pack("i", 7), struct.pack("f", 1.5), struct.pack("i", -3))
    assert (x, far, nothing) == (struct.pack("Q", 2**40 + 16), struct.pack("q", -(2**40)), bytes(8))


def test_what_cuda_refuses_is_named() -> None:
    with pytest.raises(LaunchError, match="loading scale: 1"):
        cuda(Cuda(status=1)).load(KERNEL, b"")
    with pytest.raises(LaunchError, match="launching scale: 1"):
        cuda(Cuda(status=1)).launch("function", KERNEL, 3, VALUES, 77, False)


# --------------------------------------------------------------------------------------------------- HIP
class Hip:
    """hip-python's module `hip`: the signatures and the layout of arguments that its manual describes."""

    def __init__(self, status: int = 0) -> None:
        self.status = status
        self.calls: list[tuple[Any, ...]] = []
        self.arguments = b""

    def hipModuleLoadData(self, image: bytes) -> tuple[int, str]:
        self.calls.append(("load", image))
        return self.status, "module"

    def hipModuleGetFunction(self, module: str, kname: bytes) -> tuple[int, str]:
        self.calls.append(("find", module, kname))
        return self.status, "function"

    def hipModuleLaunchKernel(
        self,
        f: str,
        gridDimX: int,
        gridDimY: int,
        gridDimZ: int,
        blockDimX: int,
        blockDimY: int,
        blockDimZ: int,
        sharedMemBytes: int,
        stream: int,
        kernelParams: None,
        extra: tuple[Any, ...],
    ) -> tuple[int]:
        assert kernelParams is None and isinstance(extra, tuple)
        grid, block = (gridDimX, gridDimY, gridDimZ), (blockDimX, blockDimY, blockDimZ)
        self.calls.append((f, grid, block, sharedMemBytes, stream))
        self.arguments = b""
        for value in extra:  # each at a multiple of its size
            size = ctypes.sizeof(value)
            self.arguments += bytes(-len(self.arguments) % size) + bytes(value)
        return (self.status,)


@pytest.fixture
def hip(monkeypatch: pytest.MonkeyPatch) -> Hip:
    """The package installed, on a torch that is built for AMD and sees a GPU."""
    api, package = Hip(), ModuleType("hip")
    package.hip = api  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hip", package)
    monkeypatch.setattr(drivers.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.version, "hip", "7.0")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = SimpleNamespace(gcnArchName="gfx942:sramecc+:xnack-")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    return api


def test_a_kernel_of_hip_is_loaded(hip: Hip) -> None:
    driver = HipDriver()
    assert HipDriver.missing() is None and HipDriver.gpu(torch.device("cuda")) == "gfx942"
    assert driver.load(KERNEL, b"code") == "function"
    assert hip.calls == [("load", b"code"), ("find", "module", b"scale_0")]


def test_a_launch_of_hip(hip: Hip) -> None:
    HipDriver().launch("function", KERNEL, 3, VALUES, 77, True)
    assert hip.calls == [("function", (3, 1, 1), (256, 1, 1), 4096, 77)]
    # as a C struct of the same members: two integers of four bytes share eight with what fills them up
    assert hip.arguments == struct.pack("@i4xQfiqQ", 7, 2**40 + 16, 1.5, -3, -(2**40), 0)


def test_what_hip_refuses_is_named(hip: Hip) -> None:
    hip.status = 98
    with pytest.raises(LaunchError, match="loading scale: 98"):
        HipDriver().load(KERNEL, b"")
    with pytest.raises(LaunchError, match="launching scale: 98"):
        HipDriver().launch("function", KERNEL, 3, VALUES, 0, False)
    with pytest.raises(LaunchError, match=r"scale: 16777216 blocks of 256 threads; fewer than 2\*\*32"):
        HipDriver().launch("function", KERNEL, 2**24, VALUES, 0, False)
    assert len(hip.calls) == 2  # the last did not come so far


# ------------------------------------------------------------------------------------------- which driver
def test_the_driver_is_that_of_the_architecture() -> None:
    assert driver_for("sm_90a") is CudaDriver and driver_for("gfx950") is HipDriver


def test_what_is_missing_for_hip_is_named(hip: Hip, monkeypatch: pytest.MonkeyPatch) -> None:
    assert no_device("gfx942") is None and no_device() is None
    assert no_device("sm_90a") == f"torch {torch.__version__} is built without CUDA"
    monkeypatch.setattr(drivers.importlib.util, "find_spec", lambda name: None)
    assert no_device() == "hip-python is not installed: pip install hip-python"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert no_device("gfx942") == f"torch {torch.__version__} sees no GPU"


def manifest(arch: str, *kernels: KernelEntry) -> Manifest:
    """y = x, through a workspace, by two kernels."""
    return Manifest(
        "copy", "triton", "a_gpu", arch,
        parameters=(
            Parameter("x", "tensor", "in", "float32", ("ROWS",)),
            Parameter("y", "tensor", "out", "float32", ("ROWS",)),
        ),
        workspaces=(Workspace("between", "float32", ("ROWS",)),),
        kernels=kernels,
        launches=(
            Launch("first", "ROWS", (("pointer", "x"), ("pointer", "between"), ("extent", "ROWS"))),
            Launch("second", "ROWS + 1", (("pointer", "between"), ("pointer", "y"))),
        ),
        source_sha256="",
    )  # fmt: skip


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_an_amd_gpu_a_program_says_so() -> None:
    program = GpuProgram(manifest("gfx942"), {}, "")
    why = f"torch {torch.__version__} is built without ROCm"
    assert program.cannot_run() == why
    said = f"copy is compiled for a_gpu (gfx942) and cannot run here: {why}. Run it"
    with pytest.raises(NoDevice, match=re.escape(said)):
        program({})


def test_another_amd_gpu_is_refused(hip: Hip) -> None:
    assert GpuProgram(manifest("gfx942"), {}, "").cannot_run() is None
    said = GpuProgram(manifest("gfx950"), {}, "").cannot_run()
    assert said is not None and said.startswith("copy is built for a_gpu (gfx950), and this GPU is gfx942")


# -------------------------------------------------------------------------------------------- a whole call
@dataclass
class Noting:
    """A driver that runs nothing."""

    launches: list[tuple[str, int, list[Value], int, bool]] = field(default_factory=list)

    def launch(
        self,
        function: Any,
        kernel: KernelEntry,
        grid: int,
        values: Sequence[Value],
        stream: int,
        overlap: bool,
    ) -> None:
        assert function == f"function {kernel.name}"
        self.launches.append((kernel.name, grid, list(values), stream, overlap))


def loaded(program: Manifest, monkeypatch: pytest.MonkeyPatch) -> tuple[Loaded, Noting]:
    """On CPU tensors, of a stream of its own."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=5))
    monkeypatch.setattr(runtime, "_IN_FLIGHT", InFlight())
    out, driver = Loaded.__new__(Loaded), Noting()
    out.driver = driver  # type: ignore[assignment]
    out.manifest, out.device = program, torch.device("cpu")
    out.kernels = {k.name: k for k in program.kernels}
    out.functions = {k.name: f"function {k.name}" for k in program.kernels}
    return out, driver


FIRST = replace(
    KERNEL, name="first", parameters=(("x", "pointer:FP32"), ("out", "pointer:FP32"), ("ROWS", "Int32")),
    extra_pointers=0,
)  # fmt: skip
SECOND = replace(KERNEL, name="second", parameters=FIRST.parameters[:2], extra_pointers=2)


def test_null_pointers_stand_behind_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    run, driver = loaded(manifest("sm_90a", FIRST, SECOND), monkeypatch)
    x, y = torch.ones(8), torch.zeros(8)
    run({"x": x, "y": y})
    (name, grid, values, stream, _), (other, other_grid, more, _, _) = driver.launches
    assert (name, grid, stream, other, other_grid) == ("first", 8, 5, "second", 9)
    between = values[1]
    assert values == [("pointer:FP32", x.data_ptr()), between, ("Int32", 8)]
    assert more == [between, ("pointer:FP32", y.data_ptr()), ("pointer", 0), ("pointer", 0)]
    assert between[0] == "pointer:FP32" and between[1] not in (0, x.data_ptr(), y.data_ptr())


@pytest.mark.parametrize("waits", [(True, True), (True, False), (False, True)])
def test_only_kernels_that_wait_for_themselves_are_launched_early(
    waits: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = [replace(k, overlaps=w) for k, w in zip((FIRST, SECOND), waits, strict=True)]
    run, driver = loaded(manifest("sm_90a", *kernels), monkeypatch)
    for _ in range(2):
        run({"x": torch.ones(8), "y": torch.zeros(8)})
    assert [early for *_, early in driver.launches] == [*waits, *waits]


def test_a_first_kernel_that_reads_early_waits_for_who_writes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = replace(manifest("sm_90a", FIRST, SECOND), early=("x",))
    run, driver = loaded(reading, monkeypatch)
    x, y = torch.ones(8), torch.zeros(8)
    run({"x": x, "y": y})
    run({"x": y, "y": x})
    assert [early for *_, early in driver.launches] == [True, True, False, True]
