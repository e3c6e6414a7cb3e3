"""The memory of GPU schedules as a table and as JSON."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from ..ir.types import Mem
from ..schedule import Schedule, stream_traffic
from ..target import Target


def summary(schedules: tuple[Schedule, ...], target: Target) -> Table:
    """One row per region: who runs it, and how much of a block it takes."""
    limit = target.spaces[Mem.Mat].bytes
    table = Table(
        "region", "form", "CTAs", "threads", "registers", "shared bytes", "limit", "share", "workspace",
        title="schedules",
    )  # fmt: skip
    for s in schedules:
        space = f"{s.workspace.bytes:,}" if s.workspace is not None else "-"
        table.add_row(
            s.region, s.form, str(s.ctas), str(s.threads), str(s.registers.total), f"{s.shared_bytes:,}",
            f"{limit:,}", f"{s.shared_bytes / limit:.1%}", space,
        )  # fmt: skip
    return table


def details(s: Schedule, target: Target) -> Table:
    """The shared memory of one region part by part, its registers, and what it streams."""
    limit = target.spaces[Mem.Mat].bytes
    table = Table("what", "bytes", "offset", "note", title=_title(s), title_justify="left")
    for p in s.shared:
        ring = s.ring if p.name == "ring" else None
        note = (
            f"{ring.owners} x {ring.slots} slots of {ring.slot_bytes:,}: {', '.join(ring.tensors)}"
            if ring
            else ""
        )
        table.add_row(f"shared: {p.name}", f"{p.bytes:,}", f"{p.offset:,}", note or p.note)
    table.add_row(
        f"shared, {s.shared_bytes / limit:.1%} of {limit:,}", f"{s.shared_bytes:,}", "",
        "two blocks fit a core" if s.resident else "one block fits a core", style="bold",
    )  # fmt: skip
    g = s.registers
    kinds = (("accumulators", g.accumulators), ("x", g.x), ("weights", g.weights), ("tiles", g.tiles))
    table.add_row(
        "registers of a thread (estimate)", str(4 * g.total), "",
        ", ".join(f"{4 * n} {name}" for name, n in kinds if n),
    )  # fmt: skip
    if s.workspace is not None:
        table.add_row(
            "workspace in global memory", f"{s.workspace.bytes:,}", "", f"fp32 {list(s.workspace.shape)}"
        )
    if s.stream is not None:
        t = stream_traffic(s, target.cores)
        table.add_row(
            "streamed weights", f"{t.total:,}", "",
            f"busiest CTA {t.imbalance:.3f} of the mean" + ("" if t.whole_lines else ", parts of lines"),
        )  # fmt: skip
        table.add_row("streamed x, all CTAs", f"{t.x_bytes:,}", "", f"{s.stream.x} in {s.stream.x_place}")
    for step in s.fixed_by:
        table.add_row("as written", "", "", str(step))
    return table


def _title(s: Schedule) -> str:
    return f"{s.region} ({s.form}): {s.ctas} CTAs of {s.threads} threads"


def schedule_json(s: Schedule, target: Target) -> dict[str, Any]:
    """The record, the limit, and the traffic of a stream."""
    out = {**s.to_json(), "shared_limit": target.spaces[Mem.Mat].bytes}
    if s.stream is not None:
        out["traffic"] = stream_traffic(s, target.cores).to_json()
    return out
