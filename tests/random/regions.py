"""Regions, with the loops around and inside of them: every way to walk the tiles of a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .body import Body, Layout, Place
from .writer import Context, Env, Scalar, Writer

SPLITS = {None: "NONE", 0: "UP_DOWN", 1: "LEFT_RIGHT"}


class Walk:
    """The blocks of tiles [tm, tn] over [rows, n]: which axes are loops outside, grids, or loops inside."""

    def __init__(self, w: Writer, layout: Layout, tm: int, tn: int, n: int) -> None:
        self.w, self.layout = w, layout
        self.tm, self.tn, self.n = tm, tn, n
        self.row_blocks = w.derive(
            w.root, f"({{}} + {tm - 1}) // {tm}", lambda r: (r + tm - 1) // tm, layout.rows
        )
        self.column_blocks = -(-n // tn)
        self.columns = w.const(self.column_blocks)
        self.blocks = w.derive(
            w.root, f"{{}} * {self.column_blocks}", lambda r: r * self.column_blocks, self.row_blocks
        )

    @property
    def single(self) -> bool:
        return self.row_blocks.constant == 1 and self.column_blocks == 1

    @contextmanager
    def body(self, split: int | None, cube: bool) -> Iterator[Body]:
        """Open the loops and the region; yields its body."""
        forms = [self._spmd, self._parallel, self._inside, self._spmd_inside]
        forms += [self._one] if self.single else [self._spmd_with, self._nested]
        before = self.w.depth
        b = self.w.pick(forms)(split)
        b.cube = cube
        yield b
        self.w.depth = before

    # ------------------------------------------------------------------------------------ places
    def place(self, context: Context, i: Scalar | None, j: Scalar | None) -> Place:
        """Offsets and tails of the block (i, j); lines go where the writer stands."""
        r0, c0 = self._start("r", context, i, self.tm), self._start("c", context, j, self.tn)
        vr = self._tail(context, self.tm, r0, self.layout.rows)
        vc = self._tail(context, self.tn, c0, self.w.const(self.n))
        return Place(self.tm, self.tn, self.n, r0, c0, vr, vc)

    def _start(self, prefix: str, context: Context, block: Scalar | None, size: int) -> Scalar:
        if block is None:
            return self.w.const(0)
        return self.w.named(prefix, self.w.derive(context, f"{{}} * {size}", lambda x: x * size, block))

    def _tail(self, context: Context, size: int, start: Scalar, extent: Scalar) -> Scalar | None:
        """Valid elements of the tile at ``start``; None if all tiles are whole."""
        if extent.constant is not None and extent.constant % size == 0:
            return None
        text = f"pl.min({size}, {{}} - {{}})"
        return self.w.named(
            "v", self.w.derive(context, text, lambda e, s: (e - s).clamp(max=size), extent, start)
        )

    def flat(self, context: Context, i: Scalar | None, j: Scalar | None) -> Scalar:
        """The number of the block (i, j)."""
        if i is None or j is None:
            return i or j or self.w.const(0)
        nc = self.column_blocks
        return self.w.named("f", self.w.derive(context, f"{{}} * {nc} + {{}}", lambda a, b: a * nc + b, i, j))

    def made(
        self, context: Context, i: Scalar | None, j: Scalar | None, split: int | None,
        place: Place | None = None,
    ) -> Body:  # fmt: skip
        """The body for the block (i, j)."""
        place = place or self.place(context, i, j)
        return Body(self.w, self.layout, context, place, split, flat=self.flat(context, i, j))

    # ------------------------------------------------------------------------------------ headers
    def axis(self, outer: Context, extent: Scalar, name: str) -> tuple[Context, Scalar]:
        """A context with one more axis, and its index."""

        def trips(env: Env) -> int:
            return int(extent.value(env)[0])

        context = Context(outer, trips)
        return context, Scalar(name, context, lambda env: torch.arange(trips(env)).repeat(outer.blocks(env)))

    def loop(self, kind: str, outer: Context, extent: Scalar, prefix: str) -> tuple[Context, Scalar]:
        """A ``for`` line; the writer stands in its body from here on."""
        name = self.w.fresh(prefix)
        stage = ", stage=2" if kind == "pipeline" else ""
        self.w.line(f"for {name} in pl.{kind}({extent.text}{stage}):")
        self.w.depth += 1
        return self.axis(outer, extent, name)

    def grid(self, outer: Context, extent: Scalar, split: int | None, loop: bool) -> tuple[Context, Scalar]:
        """A region over a grid, as a loop or as a ``with``."""
        w = self.w
        name = w.fresh("i")
        call = ", ".join([extent.text, *self.options(split)])
        w.line(f"for {name} in pl.spmd({call}):" if loop else f"with pl.spmd({call}):")
        w.depth += 1
        if not loop:
            w.line(f"{name} = {w.pick(('pl.tile.get_block_idx()', 'pl.get_block_idx()'))}")
        return self.axis(outer, extent, name)

    def at(self, split: int | None = None) -> None:
        """A region of one block."""
        call = ", ".join(["level=pl.Level.CORE_GROUP", *self.options(split)])
        self.w.line(f"with pl.at({call}):")
        self.w.depth += 1

    def options(self, split: int | None) -> list[str]:
        """Keywords of a region."""
        w = self.w
        found = []
        if split is not None or w.chance(10):
            slots = ", slot_num=4" if w.chance(20) else ""
            found.append(f"optimizations=[pl.split(pl.SplitMode.{SPLITS[split]}{slots})]")
        if w.chance(40):
            found.append(f'name_hint="{w.fresh("region_")}"')
        return found

    # ------------------------------------------------------------------------------------ forms
    def _one(self, split: int | None) -> Body:
        """One block."""
        self.at(split)
        return self.made(self.w.root, None, None, split)

    def _spmd(self, split: int | None, loop: bool = True) -> Body:
        """A grid over both axes, its number taken apart."""
        w, nc = self.w, self.column_blocks
        context, block = self.grid(w.root, self.blocks, split, loop)
        if nc == 1:
            return self.made(context, block, None, split)
        i = w.named("i", w.derive(context, f"{{}} // {nc}", lambda b: b // nc, block))
        j = w.named("j", w.derive(context, f"{{}} % {nc}", lambda b: b % nc, block))
        return self.made(context, i, j, split)

    def _spmd_with(self, split: int | None) -> Body:
        return self._spmd(split, loop=False)

    def _parallel(self, split: int | None) -> Body:
        """Tasks in loops."""
        w = self.w
        context, i = self.loop(w.pick(("parallel", "range")), w.root, self.row_blocks, "i")
        j = None
        if self.column_blocks > 1:
            context, j = self.loop(w.pick(("parallel", "range")), context, self.columns, "j")
        place = self.place(context, i, j) if w.chance(50) else None  # before the region, or in it
        self.at(split)
        return self.made(context, i, j, split, place)

    def _nested(self, split: int | None) -> Body:
        """A grid in a loop."""
        w = self.w
        context, i = self.loop(w.pick(("parallel", "range")), w.root, self.row_blocks, "i")
        inner, j = self.grid(context, self.columns, split, loop=True)
        return self.made(inner, i, j, split)

    def _inside(self, split: int | None) -> Body:
        """One task that loops over all blocks."""
        self.at(split)
        return self._columns_inside(
            *self.loop(self.w.pick(("range", "pipeline")), self.w.root, self.row_blocks, "i"), split
        )

    def _spmd_inside(self, split: int | None) -> Body:
        """A grid over the rows, a loop in each block over the columns."""
        return self._columns_inside(*self.grid(self.w.root, self.row_blocks, split, loop=True), split)

    def _columns_inside(self, context: Context, i: Scalar, split: int | None) -> Body:
        j = None
        if self.column_blocks > 1:
            context, j = self.loop(self.w.pick(("range", "pipeline")), context, self.columns, "j")
        return self.made(context, i, j, split)
