"""Launching a bundle: torch for memory, cuda.bindings for kernels, nothing else.

A call checks its arguments, takes workspace from torch's allocator and launches on torch's current stream.
It never waits for the device, so it may be captured in a CUDA graph.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .arguments import bind, calls, workspace
from .manifest import KernelEntry, Manifest, check_arch, read_bundle


class LaunchError(RuntimeError):
    """The driver refused; the message names the call and the kernel."""


class NoDevice(RuntimeError):
    """Nothing can be launched on this machine; the message says why, and what to do instead."""


def no_device() -> str | None:
    """Why nothing can be launched here, or None."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no GPU"
    if importlib.util.find_spec("cuda") is None or importlib.util.find_spec("cuda.bindings") is None:
        return "cuda-bindings is not installed: pip install cuda-bindings"
    return None


def _check(result: tuple[Any, ...], what: str) -> Any:
    if int(result[0]) != 0:
        raise LaunchError(f"{what}: {result[0]!s}")
    return result[1] if len(result) == 2 else result[1:]


Range = tuple[int, int]  # addresses, the end exclusive


class InFlight:
    """What programs that may still run write, by stream.

    Kernels read some tensors before they wait for the kernels before them (`Manifest.early`).  Kernels of
    others end before ours begin, but the last kernels of our own programs may still run.
    """

    def __init__(self) -> None:
        self.written: dict[int, list[Range]] = {}

    def admits(self, manifest: Manifest, tensors: Mapping[str, torch.Tensor], stream: int) -> bool:
        """Whether a program may start before what runs on the stream ends; takes note of what it writes."""
        before = self.written.get(stream, [])
        early = [_range(tensors[n]) for n in manifest.early if n in tensors]
        clash = any(a < d and c < b for a, b in early for c, d in before)
        outputs = [p.name for p in manifest.parameters if p.kind == "tensor" and p.direction != "in"]
        own = [_range(tensors[n]) for n in outputs]
        self.written[stream] = own if clash or manifest.fenced else sorted({*before, *own})
        return not clash


def _range(t: torch.Tensor) -> Range:
    return t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()


_IN_FLIGHT = InFlight()


class Loaded:
    """A program on torch's current GPU: ``program({name: tensor or number})``.

    Raises:
        NoDevice: there is no GPU.
        BundleError: the bundle is damaged or for another architecture.
        ValueError: an argument has a wrong device, dtype, shape, layout or alignment.
        LaunchError: the driver refused a kernel.
    """

    def __init__(self, manifest: Manifest, cubins: Mapping[str, bytes]) -> None:
        if (why := no_device()) is not None:
            raise NoDevice(
                f"{manifest.name} is compiled for {manifest.target} ({manifest.arch}) and cannot run here: "
                f"{why}. Run it on a machine with that GPU, or on the platform {manifest.target}sim"
            )
        from cuda.bindings import driver

        self.driver = driver
        self.manifest = manifest
        self.device = torch.device("cuda", torch.cuda.current_device())
        check_arch(manifest, torch.cuda.get_device_capability(self.device))
        torch.zeros(1, device=self.device)  # the context that the modules are loaded into
        self.functions = {k.name: self._load(k, cubins[k.name]) for k in manifest.kernels}
        self.kernels = {k.name: k for k in manifest.kernels}

    @staticmethod
    def open(folder: str | Path) -> Loaded:
        """The program of a bundle folder."""
        return Loaded(*read_bundle(Path(folder)))

    def _load(self, kernel: KernelEntry, cubin: bytes) -> Any:
        d = self.driver
        module = _check(d.cuModuleLoadData(cubin), f"loading {kernel.name}")
        function = _check(d.cuModuleGetFunction(module, kernel.symbol.encode()), f"finding {kernel.symbol}")
        size = d.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        what = f"{kernel.shared_bytes} bytes of shared memory for {kernel.name}"
        _check(d.cuFuncSetAttribute(function, size, kernel.shared_bytes), what)
        return function

    def __call__(self, args: Mapping[str, Any], progress: Any = None) -> None:
        bound = bind(self.manifest, args, self.device)
        slab = workspace(self.manifest, bound.extents)
        memory = torch.empty(slab.bytes, dtype=torch.uint8, device=self.device)
        tensors = {p.name: args[p.name] for p in self.manifest.parameters if p.kind == "tensor"}
        tensors |= {p.name: args[p.name].clone() for p in self.manifest.parameters if p.private}
        pointers = {n: t.data_ptr() for n, t in tensors.items()}
        pointers |= {n: memory.data_ptr() + at for n, at in slab.offsets.items()}
        stream = torch.cuda.current_stream(self.device).cuda_stream
        overlap = _IN_FLIGHT.admits(self.manifest, tensors, stream)
        todo = list(calls(self.manifest, bound, pointers))
        for done, (launch, grid, values) in enumerate(todo, 1):
            self._launch(self.kernels[launch.kernel], grid, values, stream, overlap or done > 1)
            if progress is not None:
                progress(done, len(todo), launch.kernel)
        del memory, tensors  # the allocator gives what was made here out again in stream order

    def _launch(
        self, kernel: KernelEntry, grid: int, values: list[int | float], stream: int, overlap: bool
    ) -> None:
        """``overlap``: the kernel may start before the one before it has ended; it waits where it must."""
        d = self.driver
        cells = (ctypes.c_uint64 * len(values))()
        for i, (value, (_, kind)) in enumerate(zip(values, kernel.parameters, strict=True)):
            if kind == "Float32":
                ctypes.c_float.from_address(ctypes.addressof(cells) + 8 * i).value = float(value)
            else:
                cells[i] = int(value) & (2**64 - 1)
        addresses = (ctypes.c_void_p * len(values))(
            *(ctypes.addressof(cells) + 8 * i for i in range(len(values)))
        )
        config = d.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = kernel.threads, 1, 1
        config.sharedMemBytes = kernel.shared_bytes
        config.hStream = d.CUstream(stream)
        early = d.CUlaunchAttribute()
        early.id = d.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        early.value.programmaticStreamSerializationAllowed = int(overlap)
        config.attrs, config.numAttrs = [early], 1
        function = self.functions[kernel.name]
        _check(
            d.cuLaunchKernelEx(config, function, ctypes.addressof(addresses), 0), f"launching {kernel.name}"
        )
