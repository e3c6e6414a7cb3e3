"""Parts of a program as inline kernels: a stage, or a step inside of a region."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from .body import Body, Layout
from .writer import Writer

Stage = Callable[[Writer, Layout], None]
_WORD = re.compile(r"[A-Za-z_]\w*")


def _helper(w: Writer, body: list[str], known: set[str], results: Sequence[str] = ()) -> str:
    """Lines as an inline kernel: what they read of their surroundings becomes parameters.  Gives the call."""
    free = sorted({x for line in body for x in _WORD.findall(re.sub(r'"[^"]*"', "", line))} & known)
    name = w.fresh_tensor("helper")
    tensors = {m.name for m in w.memory}
    parameters = [f"{x}: {w.pick(('pl.Tensor', repr('pl.Tensor')))}" if x in tensors else x for x in free]
    margin = min((len(x) - len(x.lstrip()) for x in body), default=0)
    w.helpers += ["", "", "@pl.jit.inline", f"def {name}({', '.join(parameters)}):"]
    w.helpers += ["    " + x[margin:] for x in body] or ["    pass"]
    if results:
        w.helpers.append(f"    return {', '.join(results)}")
    keywords = w.choose(len(free) + 1)  # once an argument goes by keyword, all after it do
    plain = len(free) - keywords
    return f"{name}({', '.join([*free[:plain], *(f'{x}={x}' for x in free[plain:])])})"


def inlined(stage: Stage) -> Stage:
    """A stage as an inline kernel."""

    def run(w: Writer, layout: Layout) -> None:
        lines, depth = w.lines, w.depth
        w.lines, w.depth = [], 1
        before = len(w.memory)
        stage(w, layout)
        body, w.lines, w.depth = w.lines, lines, depth
        for m in w.memory[before:]:
            if m.kind == "scratch":  # created by the caller, so that later stages see it
                line = next(x for x in body if x.startswith(f"    {m.name} = pl.create_tensor("))
                body.remove(line)
                w.lines.append(line)
        w.line(_helper(w, body, {"rows", *(m.name for m in w.memory), *w.parameters}))

    return run


def inlined_step(step: Callable[[Body], bool]) -> Callable[[Body], bool]:
    """A step inside of a region as an inline kernel that returns its tiles."""

    def run(b: Body) -> bool:
        w = b.w
        p = b.place
        lines, w.lines = w.lines, []
        before = list(b.tiles)
        for t in before:
            t.frozen = True  # the caller and the kernel both have a name for it
        done = step(b)
        body, w.lines = w.lines, lines
        if not body:
            return done
        scalars = [p.r0, p.c0, p.vr, p.vc, b.flat, b.layout.rows, *b.numbers]
        known = {x for s in scalars if s is not None for x in _WORD.findall(s.text)} - {"pl", "min"}
        known |= {t.name for t in before} | {m.name for m in w.memory} | set(w.parameters)
        results = [t.name for t in b.tiles if t not in before]
        call = _helper(w, body, known, results)
        w.line(f"{', '.join(results)} = {call}" if results else call)
        return done

    return run
