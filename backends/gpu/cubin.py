"""What a cubin says about its kernel: registers and local memory, read from the ELF file itself."""

from __future__ import annotations

import struct
from dataclasses import dataclass

# .nv.info is a run of attributes: format, name and, for this format, a size; then the data.  These three hold
# (index of the symbol, value).  Other formats have a value of two bytes in the place of the size.
_SIZED = 4
_FRAME, _MIN_STACK, _REGISTERS = 0x11, 0x12, 0x2F


@dataclass(frozen=True)
class PerThread:
    """``registers`` of a thread; ``local_bytes`` of memory that it spills to or indexes, 0 if none."""

    registers: int
    local_bytes: int


def resources(cubin: bytes) -> PerThread:
    """The most that any function of the file takes; ValueError if it is no cubin."""
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError("it is no 64-bit ELF file")
    (table,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    heads = [struct.unpack_from("<IIQQQQ", cubin, table + i * size) for i in range(count)]
    strings = heads[names][4]
    found = {_FRAME: [0], _MIN_STACK: [0], _REGISTERS: []}
    for name, _, _, _, start, length in heads:
        end = cubin.index(b"\0", strings + name)
        if cubin[strings + name : end] != b".nv.info":
            continue
        at = start
        while at < start + length:
            kind, attribute, data = struct.unpack_from("<BBH", cubin, at)
            at += 4
            if kind == _SIZED:
                if attribute in found:
                    found[attribute].append(struct.unpack_from("<II", cubin, at)[1])
                at += data
    if not found[_REGISTERS]:
        raise ValueError("it has no register count")
    return PerThread(max(found[_REGISTERS]), max(*found[_FRAME], *found[_MIN_STACK]))
