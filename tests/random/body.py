"""The inside of a region: where its blocks stand, which tiles are in scope, how they load and store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .blocks import Blocks, gather, scatter
from .facts import Facts
from .writer import BF16, F32, I32, NAMES, Context, Env, Memory, Scalar, Tile, Writer

PADS = {"zero": ("pl.PadValue.zero", "0"), "min": ("pl.PadValue.min",), "max": ("pl.PadValue.max",)}


@dataclass
class Layout:
    """What the tensors of a program have in common: row and column extents."""

    rows: Scalar
    row_text: str  # in annotations
    columns: tuple[int, ...]

    @property
    def dynamic(self) -> bool:
        return self.rows.constant is None


@dataclass
class Place:
    """Where a block works: the tile [tm, tn] at (r0, c0) of tensors [rows, n], with its tails."""

    tm: int
    tn: int
    n: int
    r0: Scalar
    c0: Scalar
    vr: Scalar | None
    vc: Scalar | None


@dataclass
class Body:
    """A region under construction, or a loop or branch of it."""

    w: Writer
    layout: Layout
    context: Context
    place: Place
    split: int | None = None  # the axis that two lanes share
    cube: bool = True  # matrix products are welcome
    clamps: bool = True  # and so is clamp=True
    flat: Scalar | None = None  # number of the block, over all axes
    tiles: list[Tile] = field(default_factory=list)
    outer: frozenset[Tile] = frozenset()  # tiles of the code around
    locked: frozenset[str] = frozenset()  # names that a trip of a loop must leave alone
    typed: frozenset[str] = frozenset()  # names that a loop carries: they keep their type
    numbers: list[Scalar] = field(default_factory=list)  # loop variables
    depth: int = 0
    pinned: set[Tile] = field(default_factory=set)  # what the current step works on

    # ------------------------------------------------------------------------------------ results
    def name(self) -> str:
        """A name for a new tile: a fresh one, or that of a tile which is thereby gone."""
        kept = self.locked | self.typed
        old = [t for t in self.tiles if t.used and t.name not in kept and t not in self.pinned]
        if not old or not self.w.chance(35):
            return self.w.fresh("a")
        gone = self.w.pick(old)
        self.tiles = [t for t in self.tiles if t.name != gone.name]
        return gone.name

    def tile(
        self, name: str, shape: Sequence[int], dtype: torch.dtype, facts: Facts,
        valid: Sequence[Scalar | None], fn: Callable[[Env], Blocks], home: bool = False,
    ) -> Tile:  # fmt: skip
        """A tile in scope; its line must be written already."""
        t = Tile(name, tuple(shape), dtype, self.context, facts.rounded(dtype), tuple(valid), home)
        self.tiles.append(t)
        self.pinned.add(t)

        def step(env: Env) -> None:
            blocks = fn(env)
            if blocks.data.dtype != dtype or blocks.shape != t.shape:
                raise AssertionError(f"{name}: {blocks.data.dtype} {blocks.shape} is not {dtype} {t.shape}")
            env.tiles[t] = blocks

        self.w.do(step)
        return t

    def emit(
        self,
        text: str,
        like: Tile,
        fn: Callable[[Env], Tensor],
        facts: Facts,
        dtype: torch.dtype | None = None,
    ) -> Tile:
        """``name = text``, a tile with the extents of ``like``; ``fn`` gives its data."""
        name = self.name()
        self.w.line(f"{name} = {text}")
        value = lambda env: like.at(env, self.context).with_data(fn(env))  # noqa: E731
        return self.tile(name, like.shape, dtype or like.dtype, facts, like.valid, value, like.home)

    def data(self, env: Env, t: Tile) -> Tensor:
        return t.at(env, self.context).data

    # ------------------------------------------------------------------------------------ choice of tiles
    def some(self, want: Callable[[Tile], bool] = lambda t: True) -> Tile | None:
        """A tile in scope, the latest ones first."""
        found = [t for t in reversed(self.tiles) if want(t)]
        if not found:
            return None
        chosen = self.w.pick(found[:5])
        self.pinned.add(chosen)
        chosen.used = True
        return chosen

    def partner(self, t: Tile, want: Callable[[Tile], bool] = lambda t: True) -> Tile | None:
        """A tile that can be the second operand to ``t``: same extents, at least as much of it valid."""

        def fits(o: Tile) -> bool:
            covered = all(b is None or b is a for a, b in zip(t.valid, o.valid, strict=True))
            mixed = {t.dtype, o.dtype} == {BF16, torch.float16}
            ints = not t.is_float and not o.is_float and o.dtype != t.dtype
            return covered and not mixed and not ints and want(o)

        return self.some(lambda o: o.shape == t.shape and fits(o))

    def changeable(self, t: Tile) -> bool:
        """True if the tile may be changed in place here."""
        return not t.frozen and t.full and t.name not in self.locked and t.context is self.context

    # ------------------------------------------------------------------------------------ index arithmetic
    def offset(self, base: Scalar, add: int) -> Scalar:
        if add == 0:
            return base
        return self.w.derive(self.context, f"{{}} + {add}", lambda b: b + add, base)

    # ------------------------------------------------------------------------------------ memory
    def source(self, kind: str, n: int, dtypes: Sequence[torch.dtype]) -> Memory:
        """A tensor [rows, n] (``rows``), [1, n] (``row``) or [k, n] (``k``): a known or a new one."""
        w, rows = self.w, self.layout.rows
        leading = {"rows": rows, "row": w.const(1)}.get(kind) or w.const(int(kind))
        known = [
            m for m in reversed(w.memory)
            if m.readable and m.dtype in dtypes and len(m.dims) == 2 and m.rows == (kind == "rows")
            and m.extents == (leading.constant, n) and m.stage < w.stage
        ]  # fmt: skip
        made = [m for m in known if m.stage >= 0]
        if made and w.chance(85):
            known = made
        if known and (not w.chance(25) or len(w.parameters) > 9):
            m = w.pick(known)
        else:
            text = self.layout.row_text if kind == "rows" else leading.text
            m = w.declare(
                [leading, w.const(n)],
                w.pick(dtypes),
                [text, str(n)],
                rows=kind == "rows",
                smooth=w.chance(25),
            )
        m.read = True
        return m

    def load(
        self, m: Memory, shape: Sequence[int], offsets: Sequence[Scalar], valid: Sequence[Scalar | None],
        room: Sequence[Scalar] = (), home: bool = False, plain: bool = False,
    ) -> Tile:  # fmt: skip
        """A box of a tensor.  ``room`` has the tensor's extent on axes where clamp=True gives ``valid``."""
        w = self.w
        name = self.name()
        m.read = True
        sizes, starts = list(shape), ", ".join(o.text for o in offsets)
        extra = pad = ""
        if any(v is not None for v in valid):
            live = ", ".join(v.text if v else str(s) for v, s in zip(valid, shape, strict=True))
            # clamp=True makes an extent at a run-time offset unknown to the compiler, even where all is valid
            clamps = (
                self.clamps
                and bool(room)
                and all(v or o.constant is not None for v, o in zip(valid, offsets, strict=True))
            )
            extra = ", clamp=True" if clamps and w.chance(30) else f", valid_shape=[{live}]"
            if w.chance(25) and not plain:
                pad = w.pick(("zero", "min", "max") if not m.dtype.is_floating_point else ("zero",))
                extra += f", pad_value={w.pick(PADS[pad])}"
        form = 0 if extra else w.choose(4)
        if form == 1 and all(s.isidentifier() for s in (o.text for o in offsets) if not s.isdigit()):
            parts = [f"{o.text} : {o.text} + {s}" for o, s in zip(offsets, sizes, strict=True)]
            w.line(f"{name} = {m.name}[{', '.join(parts)}]")
        else:
            call = "pl.tensor.slice" if form == 2 else "pl.slice"
            w.line(f"{name} = {call}({m.name}, {sizes}, [{starts}]{extra})")

        def value(env: Env) -> Blocks:
            at = [o.at(env, self.context) for o in offsets]
            live = [None if v is None else v.at(env, self.context) for v in valid]
            b = self.context.blocks(env)
            at = [o.expand(b) if len(o) == 1 else o for o in at]
            blocks = gather(env.memory[m.name], at, sizes, [None if v is None else v.expand(b) for v in live])
            return (
                blocks if not pad else Blocks(blocks.filled(pad_number(pad, m.dtype)), (None,) * len(sizes))
            )

        facts = m.facts
        if pad in ("min", "max"):
            facts = facts.join(Facts(abs(pad_number(pad, m.dtype)), 0.0, 0))
        return self.tile(
            name, sizes, m.dtype, facts, (None,) * len(sizes) if pad else valid, value, home and not pad
        )

    def home(self, dtypes: Sequence[torch.dtype] = (F32, BF16, F32, I32), plain: bool = False) -> Tile:
        """The block's own part of a [rows, n] tensor."""
        p = self.place
        m = self.source("rows", p.n, dtypes)
        room = (self.layout.rows, self.w.const(p.n))
        return self.load(m, (p.tm, p.tn), (p.r0, p.c0), (p.vr, p.vc), room, home=True, plain=plain)

    def number(self, t: Tile) -> tuple[str, float]:
        """A constant for arithmetic with ``t``: exact in every float type."""
        value = self.w.pick((1, 2, 3)) if not t.is_float else self.w.pick((0.5, 2.0, 1.5, -0.25, -1.0))
        return repr(value), value

    def small(self, t: Tile, limit: float = 64.0) -> Tile:
        """``t``, scaled down by a power of two if it may be large."""
        if not t.is_float or t.facts.bound <= limit:
            return t
        exponent = 0
        while t.facts.bound * 2.0**-exponent > limit:
            exponent += 1
        scale = 2.0**-exponent
        grain = None if t.facts.grain is None else t.facts.grain + exponent
        facts = Facts(t.facts.bound * scale, t.facts.tol * scale, grain)
        return self.emit(
            f"pl.mul({t.name}, {scale!r})",
            t,
            lambda env: (self.data(env, t).float() * scale).to(t.dtype),
            facts,
        )

    def doubled(self, t: Tile) -> Tile:
        """``t + t``, exactly."""
        double = Facts(2 * t.facts.bound, 2 * t.facts.tol, t.facts.grain)
        return self.emit(
            f"pl.mul({t.name}, {'2.0' if t.is_float else '2'})", t, lambda env: self.data(env, t) * 2, double
        )

    def store(self, m: Memory, t: Tile, offsets: Sequence[Scalar], add: bool = False) -> None:
        """Write the valid part of a tile into a tensor."""
        w = self.w
        starts = ", ".join(o.text for o in offsets)
        form = 0 if add else w.choose(3)
        if form == 1 and t.full and all(o.text.isidentifier() or o.text.isdigit() for o in offsets):
            parts = [f"{o.text} : {o.text} + {s}" for o, s in zip(offsets, t.shape, strict=True)]
            w.line(f"{m.name}[{', '.join(parts)}] = {t.name}")
        else:
            atomic = ", atomic=pl.AtomicType.Add" if add else ""
            rebind = f"{m.name} = " if form == 2 else ""
            w.line(f"{rebind}pl.assemble({m.name}, {t.name}, [{starts}]{atomic})")
        before = m.facts
        m.facts = t.facts if m.stage < 0 else before.join(t.facts)
        m.stage = w.stage

        def write(env: Env) -> None:
            b = self.context.blocks(env)
            at = [o.at(env, self.context) for o in offsets]
            at = [o.expand(b) if len(o) == 1 else o for o in at]
            blocks = t.at(env, self.context)
            scatter(env.memory[m.name], at, blocks, add)
            if m.name in env.written:
                scatter(
                    env.written[m.name], at, blocks.with_data(torch.ones_like(blocks.data, dtype=torch.bool))
                )

        w.do(write)

    # ------------------------------------------------------------------------------------ nesting
    def nested(self, **changes: Any) -> Body:
        """The body of a loop or of a branch: what it binds anew is its own until the two are merged."""
        known = {
            "tiles": list(self.tiles),
            "outer": frozenset(self.tiles),
            "pinned": set(),
            "depth": self.depth + 1,
        }
        return replace(self, **{**known, **changes})


def pad_number(pad: str, dtype: torch.dtype) -> float:
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return {"zero": 0, "min": info.min, "max": info.max}[pad]


def dtype_name(dtype: torch.dtype) -> str:
    return f"pl.{NAMES[dtype]}"
