"""What assembly says about its kernel: registers of an AMD one, and what follows the declared parameters.

The text of an AMD kernel ends in the metadata that the driver reads.  PTX knows no registers, ptxas gives
them out: :mod:`..gpu.cubin` reads those.
"""

from __future__ import annotations

import re

from ..gpu.cubin import PerThread

_METADATA = re.compile(r"^\s*\.amdgpu_metadata$(.*?)^\s*\.end_amdgpu_metadata$", re.MULTILINE | re.DOTALL)
_AMD_PARAMETER = re.compile(
    r"^\s+\.size:\s+(\d+)\n\s+\.value_kind:\s+(?:by_value|global_buffer)$", re.MULTILINE
)
_ENTRY = re.compile(r"^\.visible \.entry \w+\(([^)]*)\)", re.MULTILINE)
_PTX_PARAMETER = re.compile(r"\.param \.[a-z](\d+) ")
_WAIT = "griddepcontrol.wait"
_POINTER = 8  # bytes


def amd_resources(text: str) -> PerThread:
    """Vector registers, those for accumulation among them, and scratch memory, of an amdgcn text.

    ValueError if it has no metadata of one kernel.
    """
    metadata = _metadata(text)
    return PerThread(_number(metadata, "vgpr_count"), _number(metadata, "private_segment_fixed_size"))


def extra_pointers(text: str, declared: int) -> int:
    """How many pointers follow the ``declared`` parameters of the kernel of a PTX or amdgcn text.

    Triton adds some, for memory that it may want from a launcher.  ValueError if something else follows, if
    parameters are missing, or if there is not one kernel.
    """
    entries = _ENTRY.findall(text)
    if len(entries) > 1:
        raise ValueError(f"it has {len(entries)} kernels")
    if entries:
        sizes = [int(bits) // 8 for bits in _PTX_PARAMETER.findall(entries[0])]
    else:
        sizes = [int(size) for size in _AMD_PARAMETER.findall(_metadata(text))]
    if len(sizes) < declared or any(size != _POINTER for size in sizes[declared:]):
        raise ValueError(f"its parameters have {sizes} bytes: not {declared} declared ones and then pointers")
    return len(sizes) - declared


def waits(text: str) -> bool:
    """Whether a kernel waits by itself for the kernels before it."""
    return _WAIT in text


def _metadata(text: str) -> str:
    found = _METADATA.findall(text)
    if len(found) != 1:
        raise ValueError(f"it has the metadata of {len(found)} kernels instead of one")
    return str(found[0])


def _number(metadata: str, name: str) -> int:
    found = re.findall(rf"^\s+(?:- )?\.{name}:\s+(\d+)$", metadata, re.MULTILINE)
    if len(found) != 1:
        raise ValueError(f"its metadata says .{name} {len(found)} times instead of once")
    return int(found[0])
