"""Random kernels: straight-line tile and scalar code, rebinding, swaps, in-place writes, loops, branches."""

from __future__ import annotations

import random

import pypto_models.language as pl
from pypto_models.errors import UserError

TILES = ("a", "b", "c", "x")
SCALARS = ("m", "n")
HEAD = """\
import pypto_models.language as pl

@pl.jit
def f(p: pl.Tensor[[16, 16], pl.FP32], o: pl.Out[pl.Tensor[[64, 16], pl.FP32]], z: pl.Scalar[pl.INDEX]):
    with pl.at(level=pl.Level.CORE_GROUP):
        m = z
        n = z + 1
        a = p[0:16, 0:16]
        b = pl.exp(a)
        c = a
        x = pl.full([16, 16], pl.FP32, 0.0)
"""
TAIL = """\
        pl.assemble(o, a, [0, 0])
        pl.assemble(o, b, [16, 0])
        pl.assemble(o, c, [32, 0])
        pl.assemble(o, x, [n + m, 0])
"""


def program(seed: int) -> str:
    """The text of one kernel.  Every name has a value at the top, so that any statement may read it."""
    r = random.Random(seed)
    while True:
        text = HEAD + "\n".join(_block(r, 0, "        ")) + "\n" + TAIL
        if not _ambiguous(text):
            return text


def _ambiguous(text: str) -> bool:
    """True if a loop changes a tile of two names in place and rebinds one: the language refuses that."""
    try:
        pl.parse(text)
    except UserError as error:
        return "names the same tile" in error.message
    return False


def _block(r: random.Random, depth: int, pad: str) -> list[str]:
    out: list[str] = []
    for _ in range(r.randint(1, 4 if depth else 6)):
        out += _nested(r, depth, pad) if depth < 4 and r.random() < 0.3 else [pad + _simple(r)]
    return out


def _simple(r: random.Random) -> str:
    t, u = r.sample(TILES, 2)
    s, q = r.choice(SCALARS), r.choice(SCALARS)
    return r.choice([
        f"{t} = pl.add({r.choice(TILES)}, {u})",
        f"{t} = pl.add({u}, {r.choice(TILES)})",
        f"{t} = pl.neg({u})",
        f"{t} = {u}",
        f"{t}, {u} = {u}, {t}",
        f"{t} = pl.assemble({t}, {u}, [0, pl.min({s}, 0)])",
        f"{t}[0:16, 0:16] = {u}",
        f"{s} = {q}",
        f"{s} = {r.randint(1, 3)}",
        f"{s} = {q} + {r.choice(SCALARS)}",
    ])  # fmt: skip


def _nested(r: random.Random, depth: int, pad: str) -> list[str]:
    inner = pad + "    "
    if r.random() < 0.5:
        stop = r.choice(["4", "m", "n"])
        return [f"{pad}for {r.choice('ijk')}{depth} in pl.range({stop}):", *_block(r, depth + 1, inner)]
    out = [f"{pad}if {r.choice(SCALARS)} > {r.choice(['2', *SCALARS])}:", *_block(r, depth + 1, inner)]
    if r.random() < 0.6:
        out += [f"{pad}else:", *_block(r, depth + 1, inner)]
    return out
