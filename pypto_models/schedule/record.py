"""The Schedule record: how one region is blocked on a GPU.

A schedule says who does what and where it lies while it is done; it changes nothing but the order of fp32
sums.  The planner (:mod:`.plan`) makes one per region; the GPU backends, the memory report and the cost model
read it.  There are three forms:

``stream``
    A contraction: ``out[rows, N] = x[rows, K] @ W[N, K]^T`` for one or more accumulators, then elementwise
    ops.  The source's column blocks are dissolved: the N columns and the K elements are dealt out anew.  See
    :class:`Stream`, which holds the whole mapping from CTA, warp and lane to bytes.
``items``
    A region that cannot be re-blocked but streams tiles through a loop (attention over paged K and V).  A
    work item is a source block; a fixed number of CTAs walks over them.  See :class:`Items`.
``blocks``
    Everything else: a work item is a source block, its tiles in registers or shared memory, no ring.

In the last two, CTA b of ``ctas`` takes the items b, b + ctas, b + 2 ctas, ... of the grid.

Words: an *element* is one number of the streamed operand; a *line* is ``line_bytes`` (128) of global memory;
a *granule* is the number of weight rows that one MMA takes (8 if W is the n8 side); *quanta* are the runs of
columns that are dealt out, granules or single columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from ..ir.graph import dim_text
from ..ir.types import Dim
from .domain import Step

Form: TypeAlias = Literal["stream", "items", "blocks"]
Place: TypeAlias = Literal["registers", "shared", "ring"]
Across: TypeAlias = Literal["none", "workspace", "red"]
Finish: TypeAlias = Literal["here", "phase", "consumer"]
Unit: TypeAlias = Literal["m16n8", "fma"]


@dataclass(frozen=True)
class Part:
    """``bytes`` of shared memory at ``offset``; parts with equal offsets are never in use at one time."""

    name: str
    bytes: int
    offset: int
    note: str = ""


@dataclass(frozen=True)
class Ring:
    """A first-in first-out buffer in shared memory, filled by ``cp.async`` and read in the same order.

    Each of the ``owners`` has a FIFO of its own: ``slots`` slots of ``slot_bytes``.  One slot is one
    ``cp.async`` group: fill slots 0 .. slots-1, then for each slot in turn: wait until at most ``slots - 1``
    younger groups are in flight, synchronise the owner, read the slot, refill it with what lies ``slots``
    groups ahead, commit (an empty group at the end keeps the count).

    * owner ``warp``: only the warp that filled a slot reads it, so ``syncwarp`` is all it takes;
    * owner ``cta``: the warps that multiply fill in the weights, one more the rows of the batch, and a CTA
      barrier takes the place of ``syncwarp``.

    ``tensors`` share the ring, in the order in which they lie in it.
    """

    owner: Literal["warp", "cta"]
    owners: int
    slots: int
    slot_bytes: int
    tensors: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return self.owners * self.slots * self.slot_bytes

    @property
    def in_flight(self) -> int:
        """Bytes that a CTA has asked for while it works on a slot."""
        return self.owners * (self.slots - 1) * self.slot_bytes


@dataclass(frozen=True)
class Weight:
    """One streamed weight operand of a contraction.

    ``tensor`` [.., ..] with rows of ``pitch_bytes``.  With ``major`` ``k`` (stored ``[N, K]``) its rows are
    columns of the output: output column n needs row ``row + n``, elements ``column + k``.  With ``n`` (stored
    ``[K, N]``) element k needs row ``row + k``, and output column n is element ``column + n``.
    ``accumulator`` is the position of the accumulator it feeds in ``RegionDomain.accumulators``.
    """

    tensor: str
    major: Literal["k", "n"]
    row: int
    column: int
    pitch_bytes: int
    accumulator: int
    line: int


@dataclass(frozen=True)
class Cell:
    """What one ring cell holds: ``rows`` rows of ``bytes`` contiguous bytes each, of one weight.

    Row r begins ``(row + r) * pitch + byte`` bytes into ``tensor``.
    """

    tensor: str
    row: int
    rows: int
    byte: int
    bytes: int


@dataclass(frozen=True)
class Stream:
    """The mapping of a contraction.  Extents are in elements, columns and rows unless named ``bytes``.

    **CTAs.**  CTA b owns K slice ``s = b % S`` and is walker ``g = b // S`` of ``walkers``.  It makes the
    units ``g, g + walkers, ...`` below ``units``.  The columns of the output are dealt to the units in runs,
    as evenly as can be, see :meth:`unit_columns`: where the ring belongs to the CTA one by one, else by whole
    granules.  A unit has ``columns`` columns of every accumulator at most.  There are as many units as
    walkers, or more if that would make them wider than ``columns``.  The last granule of a unit may have
    less than ``granule`` columns.  Slice s is the K range ``[cuts[s], cuts[s + 1])``; S = ``slices``.  There
    may be more CTAs than cores: they run in waves.

    **Warps.**  ``warps_n * warps_k`` of them: warp w has ``kw = w % warps_k`` and ``nw = w // warps_k``.  It
    takes the granules ``nw, nw + warps_n, ...`` of the unit, and the part ``kw`` of the slice, see
    :meth:`warp_range`: contiguous, cut at whole lines, the first warps one line longer if they do not divide.

    **Order.**  For each unit, for each K step of ``step`` elements of the warp's part (the last may be
    shorter), first x (if ``x_place`` is ``ring``), then for each granule, for each weight in the order of
    ``weights``, one *cell*: ``granule`` rows of ``step`` elements; :meth:`cells` gives them in this order.
    So K is the inner loop; with one unit per CTA it is the outer loop over all columns that the CTA owns.
    Accumulators of the whole unit stay in fragments from the first K step to the reduction.

    **Ring.**  A slot holds ``slot_cells`` consecutive cells of one K step; a step takes ``step_slots`` slots,
    of which the last may be partly empty.  With ``owner`` ``warp`` all of the above is as it stands: each
    warp streams its own cells.  With ``cta`` these warps fill the cells of all granules, and one more warp
    x; a step is ``step`` elements of the whole slice and one slot; line l of the step belongs to the warps
    with ``kw = l % warps_k`` instead of a contiguous part.  Its cells are those of all granules for the first
    weight, then for the next; cell i belongs to the warps with ``nw = i % warps_n``, so that several
    accumulators balance better than whole granules.

    Of a warp's own ring, a cell lies line by line: line l of row r at ``(l * rows + r) * line_bytes``, its
    16-byte chunk c at place ``c ^ (r % 8)``, so that ``ldmatrix`` meets no bank conflict.  In the ring of a
    CTA the rows of the weights, then those of x, lie one after the other, ``step`` elements each, and chunk c
    of a line at ``c ^ 4 * (r % 2)``: lane (g, t) takes chunks t and t + 4 of row g with plain 16-byte loads,
    which then are conflict-free too, and both operands of an MMA use that order of K.  Copy a cell row by
    row: a warp instruction of 32 x 16 bytes then covers whole lines only.  Rows beyond the unit and elements
    beyond the warp's part are not copied but zero, or their sums are not used.

    **Before the wait** (``griddepcontrol.wait``): the weight cells of the first ``slots`` slots, if their
    tensor is in ``Schedule.prefetch``; after it the x cells among them, each in its place; then the first
    commit, which covers all of these, and empty commits up to ``slots``.

    **x.**  ``rows`` rows (of the tile, a multiple of 16; rows beyond the valid ones are zeros).

    * ``registers``: each warp loads the fragments of its K part once and keeps them;
    * ``shared``: the CTA loads its K slice once, as cells of ``granule`` rows and one line, K outer;
    * ``ring``: the warp streams ``x_cells`` cells, ``granule`` rows each, ahead of the weights of each step.

    **MMA.**  ``m16n8``: with ``batch`` ``m`` the batch is the m16 side and weight rows the n8 side (granule
    8); with ``n`` the sides are exchanged (granule 16).  A fragment of K takes 32 bytes (k16 in bf16).  For
    ``major`` ``n`` the granule is a line of columns, a cell ``step`` rows of one line, and ``ldmatrix.trans``
    reads it.  ``fma``: fp32 operands, no tensor core.

    **Sums.**  Warps first, if ``warps_k`` > 1.  After a unit, ``reduce_granules`` granules (of every
    accumulator) at a time: each warp writes its fragments to the scratch, a CTA barrier, then granule i is
    summed by warp ``i % warps`` over kw = 0, 1, ... in that order.  The scratch has two halves used in turn,
    so that one barrier a round is enough.  If the part ``reduce`` has the offset of the ring, a CTA barrier
    comes before the first round.  With ``owner`` ``cta`` all granules pass through the scratch in one round,
    whatever ``warps_k`` is, and one half is enough.  Then, ``across`` slices:

    * ``none`` (S = 1): the summing warp runs the epilogue on its fragment and stores;
    * ``workspace``: it stores fp32 into ``[S, accumulators, rows, N]`` at its s.  Whoever finishes adds
      s = 0, 1, ... in that order and runs the epilogue: a ``phase`` of its own when all CTAs are done
      (``finish``), or the ``consumer`` region in its prologue.  Deterministic;
    * ``red``: ``red.add.f32`` into ``[accumulators, rows, N]``, which an earlier kernel of the same program
      has zeroed, finished the same way.  Not deterministic, never a default.
    """

    weights: tuple[Weight, ...]
    x: str
    x_place: Place
    rows: int
    n: int
    k: int
    element_bytes: int
    accumulators: int
    owner: Literal["warp", "cta"]
    batch: Literal["m", "n"]
    unit: Unit
    granule: int
    columns: int
    walkers: int
    cuts: tuple[int, ...]
    line: int
    step: int
    slot_cells: int
    warps_n: int
    warps_k: int
    reduce_granules: int
    across: Across
    finish: Finish

    @property
    def slices(self) -> int:
        return len(self.cuts) - 1

    @property
    def units(self) -> int:
        return max(-(-self.n // self.columns), min(self.walkers, self.all_granules))

    @property
    def all_granules(self) -> int:
        """Of the whole output."""
        return -(-self.n // self.granule)

    @property
    def granules(self) -> int:
        """Of one unit, at most."""
        return -(-self.columns // self.granule)

    @property
    def quantum(self) -> int:
        """Columns are dealt to units in multiples of it."""
        return 1 if self.owner == "cta" and self.major == "k" else self.granule

    def unit_columns(self, u: int) -> tuple[int, int]:
        """The first column of unit ``u`` and the one behind its last."""
        each, more = divmod(-(-self.n // self.quantum), self.units)
        first = u * each + min(u, more)
        return first * self.quantum, min((first + each + (u < more)) * self.quantum, self.n)

    @property
    def cell_bytes(self) -> int:
        return (
            self.granule * self.step * self.element_bytes
            if self.major == "k"
            else self.step * self.line_bytes
        )

    @property
    def major(self) -> Literal["k", "n"]:
        return self.weights[0].major

    @property
    def line_bytes(self) -> int:
        return self.line * self.element_bytes

    @property
    def x_cells(self) -> int:
        """Cells of x at the head of a K step."""
        if self.x_place != "ring":
            return 0
        return -(-self.rows * self.step * self.element_bytes // self.cell_bytes)

    @property
    def step_cells(self) -> int:
        """Cells that an owner of the ring streams in a K step, at most."""
        own = -(-self.granules // self.warps_n) if self.owner == "warp" else self.granules
        return self.x_cells + own * len(self.weights)

    @property
    def step_slots(self) -> int:
        return -(-self.step_cells // self.slot_cells)

    def slice_of(self, cta: int) -> int:
        return cta % self.slices

    def units_of(self, cta: int) -> range:
        return range(cta // self.slices, self.units, self.walkers)

    def warp_range(self, s: int, kw: int) -> tuple[int, int]:
        """The K range of the warps ``kw`` in slice ``s``; may be empty."""
        first, last = self.cuts[s], self.cuts[s + 1]
        quantum = self.line if self.major == "k" else self.mma_k
        lines = -(-(last - first) // quantum)
        each, more = divmod(lines, self.warps_k)
        begin = kw * each + min(kw, more)
        end = begin + each + (kw < more)
        return min(first + begin * quantum, last), min(first + end * quantum, last)

    @property
    def mma_k(self) -> int:
        """Elements of K in one MMA: 32 bytes."""
        return max(32 // self.element_bytes, 1)

    def cells(self, cta: int, warp: int) -> Iterator[Cell]:
        """The weight cells that a warp multiplies, in order, clipped to the tensors.

        This is the meaning of the mapping, one cell at a time; the accounting and the tests run it.  Where
        the CTA owns the ring these are the lines of the cells that the warp takes.
        """
        kw, nw = warp % self.warps_k, warp // self.warps_k
        low, high = self.warp_range(self.slice_of(cta), kw)
        starts, width = range(low, high, self.step), self.step
        if self.owner == "cta":
            s = self.slice_of(cta)
            low, high, width = self.cuts[s], self.cuts[s + 1], self.line
            lines = enumerate(range(low, high, self.line))
            per_step = max(self.step // self.line, 1)
            starts = [k for i, k in lines if i % per_step % self.warps_k == kw]  # type: ignore[assignment]
        for unit in self.units_of(cta):
            first, last = self.unit_columns(unit)
            for k in starts:
                for g, w in self._cells_of(nw):
                    n = first + g * self.granule
                    cell = self._cell(w, n, min(n + self.granule, last), k, min(k + width, high))
                    if cell is not None:
                        yield cell

    def _cells_of(self, nw: int) -> Iterator[tuple[int, Weight]]:
        """Granule and weight of the cells of a step that the warps ``nw`` take."""
        weights = range(len(self.weights))
        cells = [(g, w) for g in range(self.granules) for w in weights]
        if self.owner == "cta":
            cells = [(g, w) for w in weights for g in range(self.granules)]
        for i, (g, w) in enumerate(cells):
            if (g if self.owner == "warp" else i) % self.warps_n == nw:
                yield g, self.weights[w]

    def _cell(self, w: Weight, n: int, n_end: int, k: int, k_end: int) -> Cell | None:
        if n >= n_end:
            return None
        size = self.element_bytes
        if w.major == "k":
            return Cell(w.tensor, w.row + n, n_end - n, (w.column + k) * size, (k_end - k) * size)
        return Cell(w.tensor, w.row + k, k_end - k, (w.column + n) * size, (n_end - n) * size)


@dataclass(frozen=True)
class Page:
    """A tile that an item's loop loads in every trip: ``rows`` rows of ``row_bytes`` contiguous bytes."""

    tensor: str
    rows: int
    row_bytes: int
    paged: bool
    line: int

    @property
    def bytes(self) -> int:
        return self.rows * self.row_bytes


@dataclass(frozen=True)
class Items:
    """A walk over source blocks that stream tiles.

    CTA b takes the source blocks ``b, b + ctas, ...`` below ``items`` (a run-time extent is read at launch).
    In a block everything happens as the source says.  What the loop over ``loop`` loads comes through the
    ring, owned by the CTA: for each trip, for each of ``pages`` in order, ``cuts`` slots of ``rows / cuts``
    rows each (rows that are not valid are not copied; the op says what they hold).  What the index of a page
    depends on (a block table entry) is read as far ahead as the ring runs: ``slots`` slots, across trips but
    not across items.  Rows lie one after the other, chunks swizzled as in a stream's cells if the row is a
    multiple of 128 bytes.

    Carried values stay in fragments.  Products are cut over warps along their N side; their other operands
    lie in the part ``tiles``.  A row reduction over that side goes through the part ``reduce``, one value for
    each row and warp, in two halves used in turn.
    """

    items: Dim
    loop: str
    pages: tuple[Page, ...]
    cuts: int


@dataclass(frozen=True)
class Registers:
    """32-bit registers of a thread, an estimate: what the plan puts there, and an allowance for the rest."""

    accumulators: int
    x: int
    weights: int
    tiles: int
    other: int

    @property
    def total(self) -> int:
        return self.accumulators + self.x + self.weights + self.tiles + self.other


@dataclass(frozen=True)
class Workspace:
    """fp32 partial sums in global memory.  ``zeroed``: an earlier kernel of the program must clear it."""

    shape: tuple[int, ...]
    zeroed: bool

    @property
    def bytes(self) -> int:
        size = 4
        for d in self.shape:
            size *= d
        return size


@dataclass(frozen=True)
class Schedule:
    """How one region runs.

    * ``ctas``: CTAs of the launch, at most; fewer if ``grid`` (the work items, int or run-time) is smaller.
    * ``warps``: of a CTA, those that multiply; ``copiers``: further ones, which copy the rows of the batch.
    * ``stream`` or ``items`` hold the mapping of those two forms.
    * ``shared``: parts of the CTA's shared memory; ``registers``: of a thread; ``workspace``: global memory.
    * ``prefetch``: tensors that no task of the program writes: their first ring slots may be on the way
      before the kernel waits for the ones before it (``griddepcontrol.wait``).  What ran before the program
      may have written them: its first kernel is launched in plain stream order.
    * ``resident``: two CTAs of this size fit an SM at a time, so that the next kernel's can be there early.
    * ``fixed_by``: the ops (with line and reason) that forbade the form ``stream``; data, not an error.
    * ``notes``: what is not as it should be, such as rows that are no whole lines.
    * ``estimate_s``: seconds, the score by which the planner chose; relative figures only.
    """

    region: str
    line: int
    target: str
    form: Form
    grid: Dim
    ctas: int
    warps: int
    registers: Registers
    shared: tuple[Part, ...]
    ring: Ring | None = None
    stream: Stream | None = None
    items: Items | None = None
    workspace: Workspace | None = None
    prefetch: tuple[str, ...] = ()
    resident: bool = True
    fixed_by: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()
    estimate_s: float = 0.0

    @property
    def copiers(self) -> int:
        return int(self.stream is not None and self.stream.owner == "cta")

    @property
    def threads(self) -> int:
        return 32 * (self.warps + self.copiers)

    @property
    def shared_bytes(self) -> int:
        return max((p.offset + p.bytes for p in self.shared), default=0)

    def part(self, name: str) -> Part:
        for p in self.shared:
            if p.name == name:
                return p
        raise KeyError(f"{self.region} has no shared memory called {name!r}")

    def describe(self) -> str:
        """The schedule as text, one line a fact."""
        out = [f"{self.region}: {self.form}, {self.ctas} CTAs of {self.threads} threads, line {self.line}"]
        out += [f"  {text}" for text in (*self._mapping(), *self._memory())]
        out += [f"  as written: {s}" for s in self.fixed_by]
        out += [f"  note: {text}" for text in self.notes]
        return "\n".join(out) + "\n"

    def _mapping(self) -> Iterator[str]:
        s = self.stream
        if s is not None:
            yield (
                f"work     {s.units} units of {s.columns} columns, K in {s.slices} slices of "
                f"{', '.join(map(str, sorted({b - a for a, b in zip(s.cuts, s.cuts[1:], strict=False)})))}; "
                f"{s.walkers} walkers x {s.slices} slices"
            )
            yield f"warps    {s.warps_n} along columns x {s.warps_k} along K, steps of {s.step} elements"
            yield f"x        {s.rows} rows in {s.x_place}, {s.unit}, batch on the {s.batch} side"
            ways = {
                "none": "none",
                "workspace": f"fp32 workspace, then a {s.finish}",
                "red": f"red.add, then a {s.finish}",
            }
            own = f"{s.warps_k} warps in shared memory" if s.warps_k > 1 else "in one warp's fragments"
            yield f"sums     {own}; across CTAs: {ways[s.across]}"
        elif self.items is not None:
            pages = ", ".join(f"{p.tensor} [{p.rows}, {p.row_bytes} bytes]" for p in self.items.pages)
            yield f"work     {dim_text(self.grid)} source blocks"
            yield f"trips    each of {self.items.loop} loads {pages}, in {self.items.cuts} slots each"
        else:
            yield f"work     {dim_text(self.grid)} source blocks"

    def _memory(self) -> Iterator[str]:
        r = self.ring
        if r is not None:
            yield f"ring     {r.owners} x {r.slots} slots of {r.slot_bytes} bytes: {', '.join(r.tensors)}"
        for p in self.shared:
            yield f"shared   {p.name}: {p.bytes} bytes at {p.offset}{f' ({p.note})' if p.note else ''}"
        yield f"shared   {self.shared_bytes} bytes in all" + (", half an SM or less" if self.resident else "")
        g = self.registers
        yield (
            f"regs     {g.total} a thread: {g.accumulators} accumulators, {g.x} x, {g.weights} weights, "
            f"{g.tiles} tiles, {g.other} other"
        )
        if self.workspace is not None:
            yield f"space    {list(self.workspace.shape)} fp32, {self.workspace.bytes} bytes"

    def to_json(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "region": self.region, "line": self.line, "form": self.form, "grid": _dim(self.grid),
            "ctas": self.ctas, "threads": self.threads, "registers": self.registers.total,
            "shared_bytes": self.shared_bytes, "resident": self.resident,
            "shared": [{"part": p.name, "bytes": p.bytes, "offset": p.offset} for p in self.shared],
            "prefetch": list(self.prefetch), "fixed_by": [s.to_json() for s in self.fixed_by],
            "notes": list(self.notes),
        }  # fmt: skip
        if self.workspace is not None:
            out["workspace"] = {"shape": list(self.workspace.shape), "bytes": self.workspace.bytes}
        if self.ring is not None:
            r = self.ring
            out["ring"] = {
                "owner": r.owner, "owners": r.owners, "slots": r.slots, "slot_bytes": r.slot_bytes,
                "tensors": list(r.tensors),
            }  # fmt: skip
        s = self.stream
        if s is not None:
            out["stream"] = {
                "columns": s.columns, "units": s.units, "slices": s.slices, "walkers": s.walkers,
                "warps_n": s.warps_n, "warps_k": s.warps_k, "step": s.step, "slot_cells": s.slot_cells,
                "x": s.x_place, "owner": s.owner, "rows": s.rows, "across": s.across, "finish": s.finish,
            }  # fmt: skip
        return out


def _dim(d: Dim) -> int | str:
    return d if isinstance(d, int) else dim_text(d)
