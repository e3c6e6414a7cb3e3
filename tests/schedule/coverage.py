"""An independent count of what a stream schedule reads: every cell, line by line, against the tensors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from pypto_models.schedule import Schedule

LINE = 128


def faults(schedule: Schedule, shapes: Mapping[str, tuple[int, int]], *, torn: bool = False) -> list[str]:
    """What is wrong with the cells of a schedule: bytes not read, read twice, outside, or parts of lines.

    ``shapes`` gives rows and bytes of a row of each weight.  ``torn`` allows parts of lines.
    """
    s = schedule.stream
    assert s is not None
    piece = 1 if torn else LINE
    seen = {name: np.zeros((rows, -(-size // piece)), np.uint8) for name, (rows, size) in shapes.items()}
    found: dict[str, None] = {}
    for cta in range(schedule.ctas):
        for warp in range(schedule.warps):
            for c in s.cells(cta, warp):
                rows, size = shapes[c.tensor]
                if c.row < 0 or c.byte < 0 or c.row + c.rows > rows or c.byte + c.bytes > size:
                    found["outside of the tensor"] = None
                    continue
                if not torn and (c.byte % LINE or c.bytes % LINE or size % LINE):
                    found["parts of lines"] = None
                    continue
                box = seen[c.tensor][c.row : c.row + c.rows, c.byte // piece : (c.byte + c.bytes) // piece]
                box += 1
    if any((count == 0).any() for count in seen.values()):
        found["not read"] = None
    if any((count > 1).any() for count in seen.values()):
        found["read twice"] = None
    return list(found)


def bytes_by_cta(schedule: Schedule) -> tuple[int, ...]:
    """Bytes of the cells of each CTA."""
    s = schedule.stream
    assert s is not None
    return tuple(
        sum(c.rows * c.bytes for warp in range(schedule.warps) for c in s.cells(cta, warp))
        for cta in range(schedule.ctas)
    )
