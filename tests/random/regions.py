"""Regions and the loops around and inside of them: every way to walk the blocks of a [rows, columns] tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from .body import Body, Layout, Place
from .writer import Context, Env, Scalar, Writer

SPLITS = {None: "NONE", 0: "UP_DOWN", 1: "LEFT_RIGHT"}


def tail(
    w: Writer, layout: Layout, context: Context, size: int, start: Scalar, extent: Scalar
) -> Scalar | None:
    """Valid elements of the tile at ``start``; None if all tiles are whole."""
    if extent.constant is not None and extent.constant % size == 0:
        return None
    count = w.derive(
        context, f"pl.min({size}, {{}} - {{}})", lambda e, s: (e - s).clamp(max=size), extent, start
    )  # fmt: skip
    return w.named("v", count)


def options(w: Writer, split: int | None, deps: str = "", hint: bool = True) -> str:
    """Keywords of a region."""
    parts = []
    if split is not None or w.chance(10):
        slots = ", slot_num=4" if w.chance(20) else ""
        parts.append(f"optimizations=[pl.split(pl.SplitMode.{SPLITS[split]}{slots})]")
    if deps:
        parts.append(f"deps={deps}")
    if hint and w.chance(40):
        parts.append(f'name_hint="{w.fresh("region_")}"')
    return ", ".join(parts)


class Walk:
    """The blocks of tiles [tm, tn] over [rows, n]: which axes are loops outside, grids, or loops inside."""

    def __init__(self, w: Writer, layout: Layout, tm: int, tn: int, n: int) -> None:
        self.w, self.layout = w, layout
        self.tm, self.tn, self.n = tm, tn, n
        self.rows = layout.rows
        self.row_blocks = w.derive(
            w.root, f"({{}} + {tm - 1}) // {tm}", lambda r: (r + tm - 1) // tm, self.rows
        )
        self.column_blocks = -(-n // tn)

    @contextmanager
    def body(self, split: int | None, cube: bool, tid: str = "", deps: str = "") -> Iterator[Body]:
        """Open the loops and the region; yields its body."""
        w = self.w
        forms: list[Callable[..., Iterator[Body]]] = [
            self._at,
            self._spmd,
            self._parallel,
            self._inside,
            self._spmd_inside,
        ]
        if deps or tid:
            forms = [self._spmd_with, self._at] if self.single else [self._spmd_with]
        elif not self.single:
            forms = [
                self._spmd,
                self._parallel,
                self._inside,
                self._spmd_inside,
                self._spmd_with,
                self._nested,
            ]
        form = w.pick(forms)
        before = w.depth
        yield from form(split, cube, tid, deps)
        w.depth = before

    @property
    def single(self) -> bool:
        return self.row_blocks.constant == 1 and self.column_blocks == 1

    # ------------------------------------------------------------------------------------ places
    def place(self, context: Context, i: Scalar | None, j: Scalar | None) -> Place:
        """Offsets and tails of the block (i, j); lines go where the writer stands."""
        w = self.w
        r0 = (
            w.const(0)
            if i is None
            else w.named("r", w.derive(context, f"{{}} * {self.tm}", lambda x: x * self.tm, i))
        )
        c0 = (
            w.const(0)
            if j is None
            else w.named("c", w.derive(context, f"{{}} * {self.tn}", lambda x: x * self.tn, j))
        )
        vr = tail(w, self.layout, context, self.tm, r0, self.rows)
        vc = tail(w, self.layout, context, self.tn, c0, w.const(self.n))
        return Place(self.tm, self.tn, self.n, r0, c0, vr, vc)

    def flat(self, context: Context, i: Scalar | None, j: Scalar | None) -> Scalar:
        """The number of the block (i, j)."""
        if i is None:
            return j or self.w.const(0)
        if j is None:
            return i
        nc = self.column_blocks
        return self.w.derive(context, f"{{}} * {nc} + {{}}", lambda a, b: a * nc + b, i, j)

    def axis(self, outer: Context, extent: Scalar, name: str) -> tuple[Context, Scalar]:
        context = Context(outer, lambda env: trips(extent, env))
        return context, Scalar(
            name, context, lambda env: torch.arange(trips(extent, env)).repeat(outer.blocks(env))
        )

    def make(
        self,
        context: Context,
        i: Scalar | None,
        j: Scalar | None,
        place: Place,
        split: int | None,
        cube: bool,
    ) -> Body:
        flat = (
            self.w.named("f", self.flat(context, i, j))
            if i is not None and j is not None
            else self.flat(context, i, j)
        )
        return Body(self.w, self.layout, context, place, split, cube, flat)

    def loop(self, kind: str, outer: Context, extent: Scalar, prefix: str) -> tuple[Context, Scalar]:
        """A ``for`` line; the body is indented from here on."""
        name = self.w.fresh(prefix)
        context, index = self.axis(outer, extent, name)
        self.w.line(
            f"for {name} in pl.{kind}({extent.text}):"
            if kind != "pipeline"
            else f"for {name} in pl.pipeline({extent.text}, stage=2):"
        )
        self.w.depth += 1
        return context, index

    def at(self, split: int | None, tid: str = "", deps: str = "") -> None:
        more = options(self.w, split, deps)
        level = "level=pl.Level.CORE_GROUP" + (f", {more}" if more else "")
        self.w.line(f"with pl.at({level}){f' as {tid}' if tid else ''}:")
        self.w.depth += 1

    # ------------------------------------------------------------------------------------ forms
    def _at(self, split: int | None, cube: bool, tid: str, deps: str) -> Iterator[Body]:
        """One block."""
        if not self.single:
            yield from self._inside(split, cube, tid, deps)
            return
        self.at(split, tid, deps)
        yield self.make(self.w.root, None, None, self.place(self.w.root, None, None), split, cube)

    def _columns(self) -> Scalar:
        return self.w.const(self.column_blocks)

    def _spmd(self, split: int | None, cube: bool, tid: str, deps: str) -> Iterator[Body]:
        """A grid over both axes, its number taken apart."""
        w = self.w
        count = w.derive(
            w.root, f"{{}} * {self.column_blocks}", lambda r: r * self.column_blocks, self.row_blocks
        )
        name = w.fresh("i")
        more = options(w, split)
        w.line(f"for {name} in pl.spmd({count.text}{', ' + more if more else ''}):")
        w.depth += 1
        context, block = self.axis(w.root, count, name)
        yield self._of_grid(context, block, split, cube)

    def _of_grid(self, context: Context, block: Scalar, split: int | None, cube: bool) -> Body:
        w, nc = self.w, self.column_blocks
        i, j = block, None
        if nc > 1:
            i = w.named("i", w.derive(context, f"{{}} // {nc}", lambda b: b // nc, block))
            j = w.named("j", w.derive(context, f"{{}} % {nc}", lambda b: b % nc, block))
        return self.make(context, i, j, self.place(context, i, j), split, cube)

    def _spmd_with(self, split: int | None, cube: bool, tid: str, deps: str) -> Iterator[Body]:
        """The same with a ``with`` and pl.tile.get_block_idx()."""
        w = self.w
        count = w.derive(
            w.root, f"{{}} * {self.column_blocks}", lambda r: r * self.column_blocks, self.row_blocks
        )
        more = options(w, split, deps)
        tid = tid or (w.fresh("tid") if deps else "")
        w.line(f"with pl.spmd({count.text}{', ' + more if more else ''}){f' as {tid}' if tid else ''}:")
        w.depth += 1
        name = w.fresh("i")
        w.line(f"{name} = {w.pick(('pl.tile.get_block_idx()', 'pl.get_block_idx()'))}")
        context, block = self.axis(w.root, count, name)
        yield self._of_grid(context, block, split, cube)

    def _parallel(self, split: int | None, cube: bool, tid: str, deps: str) -> Iterator[Body]:
        """Tasks in loops: parallel, sequential or unrolled, with a loop inside for the columns."""
        w = self.w
        kinds = ["parallel", "range"]
        context, i = self.loop(w.pick(kinds), w.root, self.row_blocks, "i")
        place_outside = w.chance(50) and self.column_blocks == 1
        j = None
        if self.column_blocks > 1:
            context, j = self.loop("parallel" if w.chance(50) else "range", context, self._columns(), "j")
        if place_outside:
            place = self.place(context, i, j)
            self.at(split)
        else:
            self.at(split)
            place = self.place(context, i, j)
        yield self.make(context, i, j, place, split, cube)

    def _nested(self, split: int | None, cube: bool, tid: str, deps: str) -> Iterator[Body]:
        """A grid in a loop."""
        w = self.w
        context, i = self.loop(w.pick(("parallel", "range")), w.root, self.row_blocks, "i")
        name = w.fresh("j")
        more = options(w, split)
        w.line(f"for {name} in pl.spmd({self.column_blocks}{', ' + more if more else ''}):")
        w.depth += 1
        inner, j = self.axis(context, self._columns(), name)
        yield self.make(inner, i, j, self.place(inner, i, j), split, cube)

    def _inside(self, split: int | None, cube: bool, tid: str, deps: str) -> Iterator[Body]:
        """One task that loops over all blocks."""
        w = self.w
        self.at(split, tid, deps)
        context, i = self.loop(w.pick(("range", "pipeline")), w.root, self.row_blocks, "i")
        j = None
        if self.column_blocks > 1:
            context, j = self.loop("range", context, self._columns(), "j")
        yield self.make(context, i, j, self.place(context, i, j), split, cube)

    def _spmd_inside(self, split: int | None, cube: bool, tid: str, deps: str) -> Iterator[Body]:
        """A grid over the rows, a loop in each block over the columns."""
        w = self.w
        name = w.fresh("i")
        more = options(w, split)
        w.line(f"for {name} in pl.spmd({self.row_blocks.text}{', ' + more if more else ''}):")
        w.depth += 1
        context, i = self.axis(w.root, self.row_blocks, name)
        j = None
        if self.column_blocks > 1:
            context, j = self.loop(w.pick(("range", "pipeline")), context, self._columns(), "j")
        yield self.make(context, i, j, self.place(context, i, j), split, cube)


def trips(extent: Scalar, env: Env) -> int:
    return int(extent.value(env)[0])
