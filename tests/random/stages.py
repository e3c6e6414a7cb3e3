"""Stages of a program: a stage is one or a few regions that read what is there and write something new.

These walk tiles over [rows, columns] tensors, with random bodies; :data:`STAGES` has the others too.
"""

from __future__ import annotations

from .bodies import some_steps
from .body import Body, Layout
from .facts import Facts
from .inlining import Stage
from .memory_stages import atomic_stage, scalar_stage, slice_stage, update_stage, view_stage
from .orchestration import carried_stage, either_stage, paged_stage, task_stage
from .products import k_loop, tile_product
from .regions import Walk
from .results import Results, write_results
from .shapes import padded_max
from .steps import expand, math_unary, reduce
from .writer import BF16, F32, Memory, Tile, Writer


def _walk(w: Writer, layout: Layout, fractal: bool, split: int | None) -> Walk:
    """Tiles [tm, tn] over [rows, n]; those of matrix products are whole fractals."""
    n = w.pick(layout.columns)
    if w.wild:
        tm, tn = w.pick((8, 16, 5, 24) if fractal else (8, 16, 5, 24, 1)), w.pick((n, 24, 16, 7))
    else:
        tm = w.pick((16, 32) if fractal or split is not None else (16, 32, 8))
        tn = w.pick((64, 32) if split == 1 else (n, 32))
    return Walk(w, layout, tm, min(tn, n), n)


def vector_stage(w: Writer, layout: Layout) -> None:
    """Loads and vector ops."""
    walk = _walk(w, layout, False, None)
    results = Results(w)
    with walk.body(None, cube=False) as b:
        b.home()
        some_steps(b, 7)
        write_results(b, results, walk)


def matmul_stage(w: Writer, layout: Layout) -> None:
    """A K loop, alone or with vector ops on its accumulator."""
    mixed = w.chance(75)
    split = w.pick((None, 0, 1, 0)) if mixed else None
    walk = _walk(w, layout, True, split)
    results = Results(w)
    with walk.body(split, cube=True) as b:
        k_loop(b)
        if mixed:
            b.doubled(b.tiles[-1])
            some_steps(b, 6)
        write_results(b, results, walk)


def attention_stage(w: Writer, layout: Layout) -> None:
    """Products of computed tiles: scores, a softmax of sorts, a second product."""
    split = w.pick((None, 0))
    walk = _walk(w, layout, True, None)
    results = Results(w)
    with walk.body(split, cube=True) as b:
        b.home((F32, BF16))
        some_steps(b, 2)
        if tile_product(b):
            for step in (padded_max, math_unary, reduce, expand, tile_product):
                step(b)
            b.doubled(b.tiles[-1])
        some_steps(b, 2)
        write_results(b, results, walk)


def crossing_stage(w: Writer, layout: Layout) -> None:
    """Tiles and scalars of one region that a later region reads."""
    n = w.pick(layout.columns)
    walk = Walk(w, layout, w.pick((16, 32)), n, n)
    results, depth = Results(w), w.depth
    context, i = w.root, None
    if not walk.single:
        context, i = walk.loop(w.pick(("range", "parallel")), w.root, walk.row_blocks, "i")
    place = walk.place(context, i, None)
    walk.at()
    b = walk.made(context, i, None, None, place)
    b.cube = b.clamps = False  # the orchestration has to know what is valid of the tiles that cross
    b.home()
    some_steps(b, 3)
    number = _number(b) if w.chance(50) else None
    w.depth -= 1
    if w.chance(30):
        w.line(
            f"with pl.at(level=pl.Level.CORE_GROUP):\n    {w.fresh('a')} = pl.full([16, 16], pl.FP32, 0.0)"
        )
    walk.at()
    b.outer = frozenset(b.tiles)
    b.tiles = [t for t in b.tiles if all(v in (None, place.vr) or v.constant is not None for v in t.valid)]
    t = b.doubled(b.tiles[-1]) if b.tiles else b.home()
    if number is not None and t.is_float:
        _add_number(b, b.small(t), *number)
    some_steps(b, 2)
    write_results(b, results, walk)
    w.depth = depth


def _number(b: Body) -> tuple[str, Memory] | None:
    """A scalar that a region reads."""
    m = b.source("row", 32, (F32,))
    if not m.facts.exact or m.facts.bound > 64:
        return None
    name = b.w.fresh("s")
    b.w.line(f"{name} = pl.read({m.name}, [0, 5]) * 2.0")
    return name, m


def _add_number(b: Body, t: Tile, name: str, m: Memory) -> None:
    fn = lambda env: (b.data(env, t).float() + env.memory[m.name][0, 5] * 2.0).to(t.dtype)  # noqa: E731
    b.emit(f"pl.add({t.name}, {name})", t, fn, t.facts.plus(m.facts.times(Facts(2.0, 0.0, 0))))


STAGES: tuple[tuple[Stage, int], ...] = (
    (vector_stage, 24), (matmul_stage, 90), (attention_stage, 14), (crossing_stage, 12), (update_stage, 6),
    (atomic_stage, 7), (scalar_stage, 6), (task_stage, 9), (view_stage, 8), (slice_stage, 5),
    (carried_stage, 8), (either_stage, 6), (paged_stage, 8),
)  # fmt: skip
