"""Where the results of a region go."""

from __future__ import annotations

import torch

from .blocks import Blocks
from .body import Body
from .regions import Walk
from .writer import Memory, Scalar, Tile, Writer


class Results:
    """Tensors for the results of a region.  They are created before it, where nothing is known of the results
    yet, so that their lines are put in when it ends."""

    def __init__(self, w: Writer) -> None:
        self.w = w
        self.line, self.step, self.depth = len(w.lines), len(w.steps), w.depth

    def create(self, dims: list[Scalar], dtype: torch.dtype, annotation: list[str], rows: bool) -> Memory:
        w = self.w
        lines, steps, depth = w.lines, w.steps, w.depth
        w.lines, w.steps, w.depth = [], [], self.depth
        m = w.scratch(dims, dtype, annotation, rows)
        lines[self.line : self.line], steps[self.step : self.step] = w.lines, w.steps
        w.lines, w.steps, w.depth = lines, steps, depth
        return m


def write_results(b: Body, results: Results, walk: Walk) -> None:
    """Store the last tile, and what nothing was computed from."""
    if not any(len(t.shape) == 2 for t in b.tiles):
        b.home()
    tiles = [t for t in b.tiles if len(t.shape) == 2]
    leaves = [t for t in tiles[:-1] if not t.used and t not in b.outer]
    for t in [tiles[-1], *leaves[-4:]]:
        _store(b, results, walk, t)


def _store(b: Body, results: Results, walk: Walk, t: Tile) -> None:
    """At the block's own place of a [rows, columns] tensor, or else in a stack of all blocks' tiles."""
    w, p = b.w, b.place
    at_home = t.shape == (p.tm, p.tn) and t.valid == (p.vr, p.vc)
    column = t.shape == (p.tm, 1) and t.valid == (p.vr, None) and walk.column_blocks == 1
    if at_home or column:
        n = p.n if at_home else 1
        m = results.create([b.layout.rows, w.const(n)], t.dtype, [b.layout.row_text, str(n)], True)
        b.store(m, t, [p.r0, p.c0 if at_home else w.const(0)])
        return
    if not t.full:
        t = filled(b, t)
    (r, c), flat = t.shape, b.flat or w.const(0)
    total = w.derive(w.root, f"{{}} * {r}", lambda n: n * r, walk.blocks)
    text = total.text if total.constant is not None else w.fresh_tensor("E")
    m = results.create([total, w.const(c)], t.dtype, [text, str(c)], False)
    start = w.derive(b.context, f"{{}} * {r}", lambda f: f * r, flat)
    b.store(m, t, [w.named("o", start), w.const(0)])


def filled(b: Body, t: Tile) -> Tile:
    """The tile with zeros outside of its valid rectangle."""
    name, whole = b.w.fresh("a"), (None,) * len(t.shape)
    b.w.line(f"{name} = pl.fillpad({t.name})")
    fn = lambda env: Blocks(t.at(env, b.context).filled(0), whole)  # noqa: E731
    return b.tile(name, t.shape, t.dtype, t.facts, whole, fn)
