"""One launch for several regions: a function for each in the emitted source, and a kernel that branches.

The first blocks of the grid run the first region, the next ones the second.  A block runs one of them only,
so that their tiles lie in the same shared memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate

from pypto_models.ir.expr import Const, DimVar, Expr, Var, binary
from pypto_models.ir.graph import expr_text
from pypto_models.ir.nodes import Region

from ..gpu.grouping import large
from ..gpu.host import none_if_negative
from ..gpu.module import Argument
from .kernel import Kernel
from .module import launcher, signature, typed
from .order import BEFORE
from .places import SHARED, allocated
from .text import Text

FIRST = "first_block"  # of a region's function: where its blocks begin
RESIDENT = 4  # blocks of a launch that a core should hold


def own_blocks(kernel: Kernel, block: Var | None) -> None:
    """The blocks of the launch are those of the region."""
    kernel.text.taken.add("cta")
    if block is not None:
        kernel.names[block] = "cta"


def first_blocks(kernel: Kernel, block: Var | None) -> None:
    """The kernel becomes a function for the first blocks of a launch."""
    kernel.text.taken |= {SHARED, FIRST}
    own_blocks(kernel, block)


def next_blocks(kernel: Kernel, block: Var | None) -> None:
    """The kernel becomes a function for the blocks from ``FIRST`` on."""
    first_blocks(kernel, None)
    if block is not None:
        kernel.names[block] = kernel.text.let(block.name, f"cta - {FIRST}")


@dataclass(frozen=True)
class Share:
    """A region of a launch, lowered: ``blocks`` is the extent of its grid, as the launcher knows it."""

    function: str
    region: Region
    kernel: Kernel
    arguments: tuple[Argument, ...]
    blocks: Expr
    why: str

    def text(self, *more: str) -> str:
        """The function; ``more`` are parameters of the kind Int32 behind its arguments."""
        k = self.kernel
        names = [typed(a.name, a.kind) for a in self.arguments]
        names += [f"{SHARED}: cute.Pointer"] if k.buffers.bytes else []
        names += [f"{x}: Int32" for x in more]
        head = [
            "@cute.jit",
            f"def {self.function}({', '.join(names)}):",
            f'    """Line {self.region.span.line}: block by block, since {self.why}."""',
            *PLACE,
        ]
        return "\n".join([*head, *("    " + x for x in k.buffers.lines), *k.text.lines]) + "\n"


PLACE = (
    "    tid, _, _ = cute.arch.thread_idx()",
    "    cta, _, _ = cute.arch.block_idx()",
    "    lane = cute.arch.lane_idx()",
    "    warp = cute.arch.make_warp_uniform(tid // 32)",
)


def crowded(regions: Sequence[Region], kernels: Sequence[Kernel], limit: int) -> bool:
    """Whether small regions would get much shared memory that they do not need, of ``limit`` bytes a core."""
    most, region = max(zip((k.buffers.bytes for k in kernels), regions, strict=True), key=lambda x: x[0])
    return most * RESIDENT > limit and not large(region)


class Arguments:
    """What the kernel of several functions takes: their arguments, each of them once."""

    def __init__(self, shares: Sequence[Share], *taken: str) -> None:
        self.names = Text()
        self.names.taken |= {"cta", SHARED, *taken, *(s.function for s in shares)}
        self.found: dict[tuple[str, tuple[str, str]], Argument] = {}

    def name(self, wanted: str, kind: str, passed: tuple[str, str]) -> str:
        """The kernel's name for it."""
        key = (kind, passed)
        if key not in self.found:
            self.found[key] = Argument(self.names.unique(wanted), kind, passed)
        return self.found[key].name

    def count(self, x: Expr, wanted: str) -> str:
        """A count that the launcher knows, under the name ``wanted`` where it has none."""
        if isinstance(x, Const):
            return f"Int32({x.value})"
        if isinstance(x, DimVar):
            return self.name(x.name, "Int32", ("extent", expr_text(x)))
        return self.name(wanted, "Int32", ("scalar", expr_text(x)))

    def of(self, s: Share) -> list[str]:
        """What a function gets: its arguments and its shared memory."""
        own = [self.name(a.name, a.kind, a.passed) for a in s.arguments]
        return [*own, *([SHARED] if s.kernel.buffers.bytes else [])]

    @property
    def all(self) -> tuple[Argument, ...]:
        return tuple(self.found.values())


@dataclass(frozen=True)
class Joint:
    """The kernel of several regions."""

    text: str
    arguments: tuple[Argument, ...]
    grid: str
    shared_bytes: int


def joint(name: str, shares: Sequence[Share], threads: int) -> Joint:
    """The kernel, and the functions that it calls."""
    taken = Arguments(shares)
    calls = [taken.of(s) for s in shares]
    *ends, total = accumulate((none_if_negative(s.blocks) for s in shares), partial(binary, "+"))
    limits = [
        taken.count(end, f"{FIRST}_of_{after.function}") for end, after in zip(ends, shares[1:], strict=True)
    ]
    shared = max(s.kernel.buffers.bytes for s in shares)
    lines = [str(s.region.span.line) for s in shares]
    where = f"{', '.join(lines[:-1])} and {lines[-1]}"
    parameters = [(a.name, a.kind) for a in taken.all]
    out = [s.text(*([FIRST] if i else [])) + "\n" for i, s in enumerate(shares)]
    out += [
        "@cute.kernel",
        signature(name, parameters),
        f'    """Lines {where}: regions that do not depend on each other, each in blocks of its own."""',
        "    cta, _, _ = cute.arch.block_idx()",
        *("    " + x for x in allocated(shared)),
        f"    {BEFORE}",
    ]
    for i, (s, call) in enumerate(zip(shares, calls, strict=True)):
        branch = f"{'elif' if i else 'if'} cta < {limits[i]}:" if i < len(limits) else "else:"
        given = ", ".join([*call, *([limits[i - 1]] if i else [])])
        out += [f"    {branch}", f"        {s.function}({given})"]
    text = "\n".join([*out, *launcher(name, parameters, threads)]) + "\n"
    return Joint(text, taken.all, expr_text(total), shared)
