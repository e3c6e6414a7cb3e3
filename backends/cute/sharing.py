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
from pypto_models.ir.types import DType

from .grouping import large
from .host import none_if_negative
from .kernel import Kernel
from .module import launcher, typed
from .order import BEFORE
from .places import Buffers
from .scalars import DSL_TYPES
from .text import Text

SHARED, FIRST = "shared", "first_block"  # of a region's function: its shared memory, where its blocks begin
RESIDENT = 4  # blocks of a launch that a core should hold


@dataclass
class Carved(Buffers):
    """Tiles in shared memory that the kernel around has allocated."""

    def add(self, name: str, dtype: DType, elements: int) -> None:
        at = self.bytes
        super().add(name, dtype, elements)
        self.lines[-1] = f"{name} = cute.recast_ptr({SHARED} + {at}, dtype={DSL_TYPES[dtype.name]})"


def own_blocks(kernel: Kernel, block: Var | None) -> None:
    """The blocks of the launch are those of the region."""
    kernel.text.taken.add("cta")
    if block is not None:
        kernel.names[block] = "cta"


def first_blocks(kernel: Kernel, block: Var | None) -> None:
    """The kernel becomes a function for the first blocks of a launch."""
    kernel.buffers = Carved()
    kernel.text.taken |= {SHARED, FIRST}
    own_blocks(kernel, block)


def next_blocks(kernel: Kernel, block: Var | None) -> None:
    """The kernel becomes a function for the blocks from ``FIRST`` on."""
    first_blocks(kernel, None)
    if block is not None:
        kernel.names[block] = kernel.text.let(block.name, f"cta - {FIRST}")


@dataclass(frozen=True)
class Argument:
    """What a kernel takes: its name there, its kind, and what the launcher passes (`Launch.arguments`)."""

    name: str
    kind: str
    passed: tuple[str, str]


@dataclass(frozen=True)
class Share:
    """A region of a launch, lowered: ``blocks`` is the extent of its grid, as the launcher knows it."""

    function: str
    region: Region
    kernel: Kernel
    arguments: tuple[Argument, ...]
    blocks: Expr
    why: str

    def text(self, later: bool) -> str:
        k = self.kernel
        names = [typed(a.name, a.kind) for a in self.arguments]
        names += [f"{SHARED}: cute.Pointer"] if k.buffers.bytes else []
        names += [f"{FIRST}: Int32"] if later else []
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


@dataclass(frozen=True)
class Joint:
    """The kernel of several regions."""

    text: str
    arguments: tuple[Argument, ...]
    grid: str
    shared_bytes: int


def joint(name: str, shares: Sequence[Share], threads: int) -> Joint:
    """The kernel, and the functions that it calls."""
    names = Text()
    names.taken |= {"cta", SHARED, *(s.function for s in shares)}
    found: dict[tuple[str, tuple[str, str]], Argument] = {}

    def argument(wanted: str, kind: str, passed: tuple[str, str]) -> str:
        key = (kind, passed)
        if key not in found:
            found[key] = Argument(names.unique(wanted), kind, passed)
        return found[key].name

    calls = [[argument(a.name, a.kind, a.passed) for a in s.arguments] for s in shares]
    *ends, total = accumulate((none_if_negative(s.blocks) for s in shares), partial(binary, "+"))
    limits = []
    for end, after in zip(ends, shares[1:], strict=True):
        if isinstance(end, Const):
            limits.append(f"Int32({end.value})")
        else:
            kind = "extent" if isinstance(end, DimVar) else "scalar"
            wanted = end.name if isinstance(end, DimVar) else f"{FIRST}_of_{after.function}"
            limits.append(argument(wanted, "Int32", (kind, expr_text(end))))
    shared = max(s.kernel.buffers.bytes for s in shares)
    lines = [str(s.region.span.line) for s in shares]
    where = f"{', '.join(lines[:-1])} and {lines[-1]}"
    parameters = tuple(found.values())
    out = [s.text(later=i > 0) + "\n" for i, s in enumerate(shares)]
    out += [
        "@cute.kernel",
        f"def {name}({', '.join(typed(a.name, a.kind) for a in parameters)}):",
        f'    """Lines {where}: regions that do not depend on each other, each in blocks of its own."""',
        "    cta, _, _ = cute.arch.block_idx()",
    ]
    if shared:
        buffer = f"smem.allocate_tensor(Int8, cute.make_layout({shared}), 128).iterator"
        out += ["    smem = utils.SmemAllocator()", f"    {SHARED} = {buffer}"]
    out.append(f"    {BEFORE}")
    for i, (s, call) in enumerate(zip(shares, calls, strict=True)):
        branch = f"{'elif' if i else 'if'} cta < {limits[i]}:" if i < len(limits) else "else:"
        given = [*call, *([SHARED] if s.kernel.buffers.bytes else []), *([limits[i - 1]] if i else [])]
        out += [f"    {branch}", f"        {s.function}({', '.join(given)})"]
    text = "\n".join([*out, *launcher(name, [(a.name, a.kind) for a in parameters], threads)]) + "\n"
    return Joint(text, parameters, expr_text(total), shared)
