"""Random programs as a hypothesis strategy.  Smaller choices are simpler, so that hypothesis shrinks a
program by dropping stages and steps and by picking plainer forms."""

from __future__ import annotations

import functools
import re

import torch
from hypothesis import strategies as st

from .body import Layout
from .inlining import inlined
from .stages import STAGES
from .writer import Choose, Env, Memory, Parameter, Program, Scalar, Writer

_WEIGHTED = tuple(s for s, weight in STAGES for _ in range(weight))


@functools.cache
def _below(n: int) -> st.SearchStrategy[int]:
    return st.integers(0, n - 1)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """A valid program, its inputs, and what it computes."""
    return write(lambda n: draw(_below(n)))


def write(choose: Choose) -> Program:
    """A program from a source of choices."""
    w = Writer(choose)
    w.wild = w.chance(15)
    layout, extents = _layout(w)
    for number in range(4):
        # Drawn before the first stage too, so that a shrinker can take out any of them
        more = w.chance(96 if number == 1 else 60)
        if number and not more:
            break
        w.next_stage(number)
        stage = w.pick(_WEIGHTED)
        (inlined(stage) if w.chance(15) else stage)(w, layout)
        for m in w.memory:
            if m.stage == number and m.rows and m.facts.bound < 2**20:
                m.readable = True
    return finish(w, extents)


def _layout(w: Writer) -> tuple[Layout, tuple[dict[str, int], ...]]:
    columns = (32, 64) if not w.wild else (w.pick((24, 40)), 16)
    if not w.chance(60):
        rows = w.pick((16, 32, 48, 20))
        return Layout(w.const(rows), str(rows), columns), ({},)
    extent = Scalar("rows", w.root, lambda env: torch.tensor([env.extents["D"]]))
    first = w.declare([extent, w.const(columns[0])], torch.float32, ["D", str(columns[0])], rows=True)
    w.line(f"rows = pl.tensor.dim({first.name}, 0)")
    runs = [w.pick((16, 24, 33, 5, 1, 47)), w.pick((32, 7, 17, 3))]
    return Layout(extent, "D", columns), tuple({"D": r} for r in runs)


def finish(w: Writer, extents: tuple[dict[str, int], ...]) -> Program:
    """What nothing reads becomes an Out parameter, so that everything computed is compared."""
    for m in w.memory:
        if m.kind != "scratch" or m.stage < 0:
            continue
        zeroed = any(f"{m.name} = pl.create_tensor(" in x and "init_value" in x for x in w.lines)
        if not m.read or w.chance(50):
            if zeroed:
                _zeroed(w, m)
            else:
                m.kind = "out"
                w.add_parameter(m)
            w.lines = [x for x in w.lines if not x.strip().startswith(f"{m.name} = pl.create_tensor(")]
    dims = sorted({x for p in w.parameters.values() for x in _dims(p.annotation)})
    head = ["import pypto_models.language as pl", "", *(f'{d} = pl.dynamic("{d}")' for d in dims)]
    parameters = [f"    {p.name}: {p.annotation}," for p in w.parameters.values()]
    body = [*w.helpers, "", "", "@pl.jit", "def kernel(", *parameters, "):", *w.lines]
    constants, body = _with_constants(w, body)
    lines = [*head, *constants, *body]
    return Program("\n".join(lines) + "\n", tuple(w.parameters.values()), tuple(w.steps), extents)


def _with_constants(w: Writer, lines: list[str]) -> tuple[list[str], list[str]]:
    """Some numbers of the text as constants of the module."""
    if not w.chance(30):
        return [], lines
    value = w.pick(("16", "32", "2"))
    number = re.compile(rf"(?<![\w.]){value}(?![\w.])")
    used = [number.sub("SIZE", x) if w.chance(60) else x for x in lines]
    return [f"SIZE = {value}"], used


def _zeroed(w: Writer, m: Memory) -> None:
    """An InOut parameter of zeros, for atomics."""
    m.kind = "inout"

    def make(values: dict[str, int], generator: torch.Generator) -> torch.Tensor:
        return torch.zeros(m.shape(Env(values, {})), dtype=m.dtype)

    w.parameters[m.name] = Parameter(m.name, f"pl.InOut[{m.annotation}]", make, m)


def _dims(annotation: str) -> list[str]:
    inner = annotation[annotation.find("[[") + 2 : annotation.find("]")] if "[[" in annotation else ""
    return [x for x in inner.split(", ") if x.isidentifier()]
