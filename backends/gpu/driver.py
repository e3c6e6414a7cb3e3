"""The two drivers that launch kernels, behind one interface: CUDA, and HIP for AMD GPUs.

torch is for NVIDIA or for AMD GPUs as it was built, and calls both of them ``cuda``: memory, streams and
graphs are its own on either.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from .manifest import KernelEntry, is_amd

Value = tuple[str, int | float]
"""The kind of an argument, as in `KernelEntry.parameters`, and its value; of a pointer, the address."""


class LaunchError(RuntimeError):
    """The driver refused; the message names the call and the kernel."""


class Driver(Protocol):
    """What launches kernels."""

    @staticmethod
    def missing() -> str | None:
        """Why it can launch nothing here, or None."""
        ...

    @staticmethod
    def gpu(device: torch.device) -> str:
        """What compilers call the GPU, without optional features: ``sm_90``, ``gfx942``."""
        ...

    def load(self, kernel: KernelEntry, binary: bytes) -> Any:
        """The function of a kernel on the current GPU."""
        ...

    def launch(
        self,
        function: Any,
        kernel: KernelEntry,
        grid: int,
        values: Sequence[Value],
        stream: int,
        overlap: bool,
    ) -> None:
        """Start ``grid`` blocks of it.

        ``overlap``: they may start before the kernel before them on the stream has ended.
        """
        ...


def driver_for(arch: str) -> type[CudaDriver] | type[HipDriver]:
    return HipDriver if is_amd(arch) else CudaDriver


class CudaDriver:
    """NVIDIA's driver, through cuda-bindings."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self.api = driver

    @staticmethod
    def missing() -> str | None:
        if torch.version.cuda is None:
            return f"torch {torch.__version__} is built without CUDA"
        if not torch.cuda.is_available():
            return f"torch {torch.__version__} sees no GPU"
        if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
            return "cuda-bindings is not installed: pip install cuda-bindings"
        return None

    @staticmethod
    def gpu(device: torch.device) -> str:
        major, minor = torch.cuda.get_device_capability(device)
        return f"sm_{major}{minor}"

    def load(self, kernel: KernelEntry, binary: bytes) -> Any:
        d = self.api
        module = checked(d.cuModuleLoadData(binary), f"loading {kernel.name}")
        function = checked(d.cuModuleGetFunction(module, kernel.symbol.encode()), f"finding {kernel.symbol}")
        size = d.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        what = f"{kernel.shared_bytes} bytes of shared memory for {kernel.name}"
        checked(d.cuFuncSetAttribute(function, size, kernel.shared_bytes), what)
        return function

    def launch(
        self,
        function: Any,
        kernel: KernelEntry,
        grid: int,
        values: Sequence[Value],
        stream: int,
        overlap: bool,
    ) -> None:
        d = self.api
        cells = (ctypes.c_uint64 * len(values))()
        start = ctypes.addressof(cells)
        for i, (kind, value) in enumerate(values):
            if kind == "Float32":
                ctypes.c_float.from_address(start + 8 * i).value = float(value)
            else:
                cells[i] = int(value) & (2**64 - 1)
        addresses = (ctypes.c_void_p * len(values))(*(start + 8 * i for i in range(len(values))))
        config = d.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = kernel.threads, 1, 1
        config.sharedMemBytes = kernel.shared_bytes
        config.hStream = d.CUstream(stream)
        early = d.CUlaunchAttribute()
        early.id = d.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        early.value.programmaticStreamSerializationAllowed = int(overlap)
        config.attrs, config.numAttrs = [early], 1
        what = f"launching {kernel.name}"
        checked(d.cuLaunchKernelEx(config, function, ctypes.addressof(addresses), 0), what)


class HipDriver:
    """AMD's driver, through hip-python.

    No AMD GPU has run it yet: it is tested against a stand-in for the package, which checks the calls.
    Kernels of one stream never overlap, and a kernel needs no permission for more shared memory.
    """

    LIMIT = 2**32  # threads of a launch

    def __init__(self) -> None:
        from hip import hip

        self.api = hip

    @staticmethod
    def missing() -> str | None:
        if torch.version.hip is None:
            return f"torch {torch.__version__} is built without ROCm"
        if not torch.cuda.is_available():
            return f"torch {torch.__version__} sees no GPU"
        if importlib.util.find_spec("hip") is None:
            return "hip-python is not installed: pip install hip-python"
        return None

    @staticmethod
    def gpu(device: torch.device) -> str:
        name: str = torch.cuda.get_device_properties(device).gcnArchName
        return name.partition(":")[0]  # features of the device stand behind the colon

    def load(self, kernel: KernelEntry, binary: bytes) -> Any:
        h = self.api
        module = checked(h.hipModuleLoadData(binary), f"loading {kernel.name}")
        return checked(h.hipModuleGetFunction(module, kernel.symbol.encode()), f"finding {kernel.symbol}")

    def launch(
        self,
        function: Any,
        kernel: KernelEntry,
        grid: int,
        values: Sequence[Value],
        stream: int,
        overlap: bool,
    ) -> None:
        what = f"launching {kernel.name}"
        if grid * kernel.threads >= self.LIMIT:
            raise LaunchError(
                f"{what}: {grid} blocks of {kernel.threads} threads; fewer than 2**32 threads are possible"
            )
        checked(
            self.api.hipModuleLaunchKernel(
                function, gridDimX=grid, gridDimY=1, gridDimZ=1,
                blockDimX=kernel.threads, blockDimY=1, blockDimZ=1,
                sharedMemBytes=kernel.shared_bytes, stream=stream, kernelParams=None,
                extra=tuple(_c_value(*v) for v in values),
            ),
            what,
        )  # fmt: skip


_C_TYPES: dict[str, Any] = {"Float32": ctypes.c_float, "Int32": ctypes.c_int32, "Int64": ctypes.c_int64}


def _c_value(kind: str, value: int | float) -> Any:
    return ctypes.c_void_p(int(value)) if kind.startswith("pointer") else _C_TYPES[kind](value)


def checked(result: tuple[Any, ...], what: str) -> Any:
    """What a call of either driver gives behind its status; LaunchError if that says that it failed."""
    if int(result[0]) != 0:
        raise LaunchError(f"{what}: {result[0]!s}")
    return result[1] if len(result) == 2 else result[1:]
