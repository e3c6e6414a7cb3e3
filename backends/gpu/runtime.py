"""Launching a bundle: torch for memory, the driver of the GPU for kernels, nothing else.

A call checks its arguments, takes workspace from torch's allocator and launches on torch's current stream.
It never waits for the device, so it may be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .arguments import bind, calls, workspace
from .driver import CudaDriver, Driver, HipDriver, LaunchError, driver_for
from .manifest import Launch, Manifest, check_arch, read_bundle

__all__ = ["InFlight", "LaunchError", "Loaded", "NoDevice", "no_device"]


class NoDevice(RuntimeError):
    """Nothing can be launched on this machine; the message says why, and what to do instead."""


def no_device(arch: str | None = None) -> str | None:
    """Why nothing can be launched here, or None; by default on the GPUs that torch was built for."""
    if arch is not None:
        return driver_for(arch).missing()
    return (CudaDriver if torch.version.hip is None else HipDriver).missing()


Range = tuple[int, int]  # addresses, the end exclusive
Prepared = tuple[dict[str, torch.Tensor], torch.Tensor, list[tuple[Launch, int, list[int | float]]]]
"""Tensors by name, workspace, and the launches of a call, each with its grid and its arguments."""


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
        self.written[stream] = own if clash or manifest.fenced else joined([*before, *own])
        return not clash


def joined(ranges: Iterable[Range]) -> list[Range]:
    """The ranges in order, those that touch as one."""
    out: list[Range] = []
    for start, end in sorted(ranges):
        if out and start <= out[-1][1]:
            out[-1] = out[-1][0], max(out[-1][1], end)
        else:
            out.append((start, end))
    return out


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

    def __init__(self, manifest: Manifest, binaries: Mapping[str, bytes]) -> None:
        if (why := no_device(manifest.arch)) is not None:
            raise NoDevice(
                f"{manifest.name} is compiled for {manifest.target} ({manifest.arch}) and cannot run here: "
                f"{why}. Run it on a machine with that GPU, or on the platform {manifest.target}sim"
            )
        self.driver: Driver = driver_for(manifest.arch)()
        self.manifest = manifest
        self.device = torch.device("cuda", torch.cuda.current_device())
        check_arch(manifest, self.driver.gpu(self.device))
        torch.zeros(1, device=self.device)  # the context that the modules are loaded into
        self.kernels = {k.name: k for k in manifest.kernels}
        self.functions = {n: self.driver.load(k, binaries[n]) for n, k in self.kernels.items()}

    @staticmethod
    def open(folder: str | Path) -> Loaded:
        """The program of a bundle folder."""
        return Loaded(*read_bundle(Path(folder)))

    def __call__(self, args: Mapping[str, Any], progress: Any = None) -> None:
        tensors, memory, todo = self._prepared(args)
        stream = self._stream()
        overlap = _IN_FLIGHT.admits(self.manifest, tensors, stream)
        for done, (launch, grid, values) in enumerate(todo, 1):
            self._launch(launch.kernel, grid, values, stream, overlap or done > 1)
            if progress is not None:
                progress(done, len(todo), launch.kernel)
        del memory, tensors  # the allocator gives what was made here out again in stream order

    def launches(self, args: Mapping[str, Any]) -> list[Callable[[], None]]:
        """The launches of a call, to be made one by one, on workspace that they keep: what one of them reads
        there is what those before it have left.  For timing one alone: it may start before what runs on the
        stream ends, which must not write what it reads early (`Manifest.early`).
        """
        kept = self._prepared(args)

        def one(launch: Launch, grid: int, values: list[int | float]) -> None:
            assert kept  # tensors and workspace
            self._launch(launch.kernel, grid, values, self._stream(), True)

        return [partial(one, *x) for x in kept[2]]

    def _prepared(self, args: Mapping[str, Any]) -> Prepared:
        bound = bind(self.manifest, args, self.device)
        slab = workspace(self.manifest, bound.extents)
        memory = torch.empty(slab.bytes, dtype=torch.uint8, device=self.device)
        tensors = {p.name: args[p.name] for p in self.manifest.parameters if p.kind == "tensor"}
        tensors |= {p.name: args[p.name].clone() for p in self.manifest.parameters if p.private}
        pointers = {n: t.data_ptr() for n, t in tensors.items()}
        pointers |= {n: memory.data_ptr() + at for n, at in slab.offsets.items()}
        return tensors, memory, list(calls(self.manifest, bound, pointers))

    def _stream(self) -> int:
        return torch.cuda.current_stream(self.device).cuda_stream

    def _launch(self, name: str, grid: int, values: list[int | float], stream: int, overlap: bool) -> None:
        """``overlap``: nothing that still runs before it forbids that the kernel starts early."""
        kernel = self.kernels[name]
        given = [(kind, v) for (_, kind), v in zip(kernel.parameters, values, strict=True)]
        given += [("pointer", 0)] * kernel.extra_pointers
        early = overlap and kernel.overlaps
        self.driver.launch(self.functions[name], kernel, grid, given, stream, early)
