"""Pictures of a memory plan and of a timeline, as PNG files.  They need the extra `plot` (matplotlib)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .cost.machine import Timeline
from .cost.operations import Pipe
from .errors import NOWHERE, Diag, user_error
from .ir.types import Mem
from .passes.plan_memory import Buffer, RegionPlan

_COLOURS = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948", "#b07aa1", "#9c755f", "#ff9da7")
_KIB = 1024


def _figure(width: float, height: float) -> Any:
    """An empty figure; without pyplot, so that no display and no global state are touched."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise user_error(
            Diag.MISSING_EXTRA, NOWHERE, what="a picture", package="matplotlib", extra="plot"
        ) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def check_plotting() -> None:
    """Raise the user error of a missing matplotlib now, before the work that the picture shows."""
    _figure(1, 1)


# ------------------------------------------------------------------------------------------------ memory
def draw_memory(regions: Sequence[RegionPlan], target: str, path: Path) -> None:
    """Live ranges across, offsets up: one panel for each region and memory space.

    Raises:
        UserError: there is no region to draw, or matplotlib is missing.
    """
    if not regions:
        raise user_error(
            Diag.ARGUMENT, NOWHERE, name="--png", why=f"there is no memory plan for {target} to draw",
            fix="give a scratchpad platform, such as a2a3sim",
        )  # fmt: skip
    columns = [m for m in Mem if any(m in r.spaces for r in regions)]
    figure = _figure(3.6 * len(columns) + 1, 2.4 * len(regions) + 0.6)
    figure.suptitle(f"memory plan on {target}: statements of the region across, KiB of one core up")
    panels = figure.subplots(len(regions), len(columns), squeeze=False)
    for row, region in zip(panels, regions, strict=True):
        for panel, mem in zip(row, columns, strict=True):
            if mem in region.spaces:
                _draw_space(panel, region, mem)
            else:
                panel.set_axis_off()
    figure.savefig(path, dpi=100)


def _draw_space(panel: Any, region: RegionPlan, mem: Mem) -> None:
    space = region.spaces[mem]
    last = max((b.last for s in region.spaces.values() for b in s.buffers), default=0)
    panel.set_xlim(0, last + 1)
    for i, b in enumerate(space.buffers):
        low, colour = b.offset / _KIB, _COLOURS[i % len(_COLOURS)]
        for copy in range(b.count):
            bottom = low + copy * b.bytes / _KIB
            panel.broken_barh(
                list(_ranges(b)), (bottom, b.bytes / _KIB), facecolors=colour, edgecolor="white"
            )
        if b.total > 0.06 * space.peak:
            width = (b.last + 1 - b.first) / (last + 1)  # of the panel: some 60 characters
            name = b.name if len(b.name) <= 60 * width else b.name[: max(int(60 * width) - 1, 0)]
            panel.text(b.first, low + b.total / _KIB / 2, f" {name}", va="center", fontsize=6, clip_on=True)
    panel.axhline(space.limit / _KIB, color="#c00000", linewidth=1, linestyle="--")
    panel.set_ylim(0, max(space.limit, space.peak) * 1.05 / _KIB)
    panel.set_title(
        f"{region.name}: {mem.name}, {space.peak / space.limit:.0%} of {space.limit // _KIB} KiB", fontsize=8
    )
    panel.tick_params(labelsize=6)


def _ranges(b: Buffer) -> Iterator[tuple[float, float]]:
    """(start, length) of the runs of points at which a buffer is live; two points are a statement."""
    live, at = b.live, 0
    while live:
        skip = (live & -live).bit_length() - 1
        live >>= skip
        length = (~live & (live + 1)).bit_length() - 1
        yield (at + skip) / 2, length / 2
        live >>= length
        at += skip + length


# ---------------------------------------------------------------------------------------------- timeline
def draw_timeline(timeline: Timeline, title: str, path: Path) -> None:
    """Three panels over one time axis: the tasks, the blocks of every core, the pipes of core 0."""
    cores = sorted({b.core for b in timeline.blocks}) or [0]
    names = list(dict.fromkeys(r.task.name for r in timeline.runs))
    colour = {name: _COLOURS[i % len(_COLOURS)] for i, name in enumerate(names)}
    height = (0.28 * len(names) + 0.6, min(0.06 * len(cores) + 0.8, 5.0), 2.0)
    figure = _figure(13, sum(height) + 1)
    figure.suptitle(title, fontsize=10)
    tasks, blocks, pipes = figure.subplots(3, 1, sharex=True, height_ratios=height)
    for row, name in enumerate(names):
        mine = [i for i, r in enumerate(timeline.runs) if r.task.name == name]
        spans = [
            (timeline.times[i].start * 1e6, (timeline.times[i].end - timeline.times[i].start) * 1e6)
            for i in mine
        ]
        tasks.broken_barh(spans, (row - 0.4, 0.8), facecolors=colour[name], snap=False)
        members = set(mine)
        for core in cores:
            at = [
                (b.start * 1e6, (b.end - b.start) * 1e6)
                for b in timeline.blocks
                if b.run in members and b.core == core
            ]
            blocks.broken_barh(at, (core - 0.5, 1), facecolors=colour[name], edgecolor="white", linewidth=0.1)
        for pipe in Pipe:
            work = [
                (s.start * 1e6, (s.end - s.start) * 1e6)
                for s in timeline.slices
                if s.core == cores[0] and s.pipe is pipe and s.run in members
            ]
            pipes.broken_barh(work, (pipe - 0.4, 0.8), facecolors=colour[name], snap=False)
    tasks.set_yticks(range(len(names)), names, fontsize=7)
    tasks.invert_yaxis()
    blocks.set_ylabel("core")
    blocks.invert_yaxis()
    pipes.set_yticks(list(Pipe), [p.name.lower() for p in Pipe], fontsize=7)
    pipes.set_ylabel(f"core {cores[0]}")
    pipes.invert_yaxis()
    pipes.set_xlabel("microseconds")
    figure.savefig(path, dpi=100)
