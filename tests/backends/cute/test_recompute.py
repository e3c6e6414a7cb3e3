"""Which cheap regions move into the prologues of their readers, where to, and that they compute the same."""

from __future__ import annotations

import textwrap
from collections import Counter

import pytest
import torch

import pypto_models.language as pl
from backends.cute.lower import lower
from backends.gpu.recompute import recomputed
from backends.gpu.unroll import unrolled
from backends.sim.machine import Machine
from pypto_models.compile import lower_function
from pypto_models.ir.nodes import For, Function, If, Let, Region
from pypto_models.ir.rewrite import defs, inner_defs, walk
from pypto_models.ir.verify import verify
from pypto_models.target import load_target

H200 = load_target("h200")
HEAD = """import pypto_models.language as pl

@pl.jit
def kernel(
    x: pl.Tensor[[16, 32], pl.FP32],
    weight: pl.Tensor[[256, 512], pl.BF16],
    w: pl.InOut[pl.Tensor[[16, 32], pl.FP32]],
    n: pl.InOut[pl.Tensor[[4], pl.INT32]],
    y: pl.InOut[pl.Tensor[[16, 32], pl.FP32]],
    z: pl.InOut[pl.Tensor[[16, 32], pl.FP32]],
    wide: pl.InOut[pl.Tensor[[16, 256], pl.FP32]],
):
    t = pl.create_tensor([16, 32], pl.FP32)
    u = pl.create_tensor([16, 32], pl.FP32)
"""


def parsed(*parts: str) -> Function:
    text = HEAD + textwrap.indent("".join(parts), "    ")
    return unrolled(lower_function(pl.parse(text, "kernel"), H200).function)


def grid(name: str, *lines: str, blocks: int = 8) -> str:
    """A region of eight blocks ``b``; a line ``a <- b`` stores two rows of an expression."""
    return (
        f"for b in pl.spmd({blocks}, name_hint='{name}'):\n"
        + textwrap.indent("\n".join(lines), "    ")
        + "\n"
    )


def rows(source: str, at: str = "b * 2", count: int = 2) -> str:
    return f"pl.slice({source}, [{count}, 32], [{at}, 0])"


def put(to: str, what: str, at: str = "b * 2") -> str:
    return f"pl.assemble({to}, {what}, [{at}, 0])"


def inside(head: str, *parts: str) -> str:
    return f"{head}:\n" + textwrap.indent("".join(p if p.endswith("\n") else p + "\n" for p in parts), "    ")


def names(function: Function) -> list[str]:
    return [s.name for s in walk(function.body) if isinstance(s, Region)]


def region(function: Function, name: str) -> Region:
    (found,) = (s for s in walk(function.body) if isinstance(s, Region) and s.name == name)
    return found


def arguments(seed: int) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)

    def fp32(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    n = torch.randint(-1, 2, (4,), generator=g, dtype=torch.int32)
    return {
        "x": fp32(16, 32), "weight": fp32(256, 512).bfloat16(), "w": fp32(16, 32), "n": n,
        "y": fp32(16, 32), "z": fp32(16, 32), "wide": fp32(16, 256),
    }  # fmt: skip


def check_values(function: Function, other: Function) -> None:
    """Both compute the same; the other is run without its task graph, which forbids that two blocks write to
    one element, though it is the same value.  That each reads what was written before is checked.
    """
    changed = 0
    for seed in range(4):
        given, expected, got = arguments(seed), arguments(seed), arguments(seed)
        Machine(function).run(expected)
        Machine(other).run(got)
        for name, value in expected.items():
            assert torch.equal(got[name], value), name
            changed += not torch.equal(given[name], value)
    assert changed


MAKE = grid("make", put("t", f"pl.neg({rows('x')})"))
TAKE = grid("take", put("y", f"pl.mul({rows('t')}, 2.0)"))
ALSO = grid("also", put("z", f"pl.add({rows('t', '(7 - b) * 2')}, 1.0)"))
BOTH = grid("make", put("t", f"pl.neg({rows('x')})"), put("u", f"pl.exp({rows('x')})"))
LENGTH = "e = pl.cast(pl.read(n, [0]), pl.INDEX) + 2"  # 1 to 3
POSITIVE = "if pl.read(n, [0]) > 0"
TILES = grid(  # 4 x 4 tiles of [4, 8]
    "make", "p = b // 4", "q = b % 4",
    "pl.assemble(t, pl.neg(pl.slice(x, [4, 8], [p * 4, q * 8])), [p * 4, q * 8])", blocks=16,
)  # fmt: skip
MOVES: dict[str, tuple[tuple[str, ...], list[str]]] = {
    "one reader": ((MAKE, TAKE), ["take"]),
    "two readers": ((MAKE, TAKE, ALSO), ["take", "also"]),
    "two tensors": ((BOTH, grid("take", put("y", f"pl.add({rows('t')}, {rows('u')})"))), ["take"]),
    "a part of a block": ((MAKE, grid("take", put("y", rows("t", count=1)))), ["take"]),
    "it reads what it has made": (
        (
            grid("make", put("t", rows("x")), put("u", f"pl.exp({rows('t')})")),
            grid("take", put("y", rows("u"))),
        ), ["take"],
    ),
    "two digits": (
        (TILES, grid("take", "p = b % 4 * 4", "q = b // 4 * 8",
                     "pl.assemble(y, pl.slice(t, [4, 8], [p, q]), [p, q])", blocks=16)), ["take"],
    ),
    "a row of a block, and an element of another axis": (
        (TILES, grid("take", "q = b // 8 * 8 + b % 8",
                     "pl.assemble(y, pl.slice(t, [4, 1], [0, q]), [0, b])", blocks=32)), ["take"],
    ),
    "others in between": ((MAKE, grid("other", put("z", rows("x"))), TAKE), ["other", "take"]),
    "a chain": (
        (MAKE, grid("more", put("u", f"pl.exp({rows('t')})")), grid("take", put("y", rows("u")))), ["take"]
    ),
    "under a condition": ((inside(POSITIVE, MAKE, TAKE),), ["take"]),
    "a loop of run-time length chooses the block": (
        (MAKE, grid("take", LENGTH, inside("for i in pl.range(e)", put("y", rows("t", "i * 2"), "i * 2")),
                    blocks=1)), ["take"],
    ),
    "an element that a trip reads chooses the block": (
        (MAKE, grid("take", LENGTH, inside("for i in pl.range(e)", "f = pl.read(n, [i]) + 1",
                                           put("y", rows("t", "f * 2"), "i * 2")), blocks=1)), ["take"],
    ),
    "read in an inner loop": (
        (MAKE, grid("take", inside("for i in pl.range(2)", put("y", f"pl.mul({rows('t')}, 2.0)")))), ["take"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MOVES)
def test_a_cheap_region_moves_into_its_readers(case: str) -> None:
    body, left = MOVES[case]
    function = parsed(*body)
    other, scratch = recomputed(function)
    assert names(other) == left
    assert {v.name for v in scratch} <= {"t", "u"} and scratch
    made = Counter(v for s in walk(other.body) for v in (*defs(s), *inner_defs(s)))
    assert max(made.values()) == 1
    verify(other)
    check_values(function, other)
    # and the whole of it is lowered
    launches = [k.region for k in lower(function, H200).kernels]
    assert not any("make" in x for x in launches) and all(any(n in x for x in launches) for n in left)


def test_what_prologues_write_is_known() -> None:
    _, scratch = recomputed(parsed(BOTH, grid("take", put("y", f"pl.add({rows('t')}, {rows('u')})"))))
    assert {v.name for v in scratch} == {"t", "u"}
    assert recomputed(parsed(MAKE.replace("(t", "(z"), TAKE.replace("(t", "(z")))[1] == frozenset()


def steps(body: tuple[object, ...]) -> list[str]:
    """The tensors that a body stores to, and t where it works that out."""
    named = {"store": lambda s: s.arg("target").name, "neg": lambda s: "t"}
    return [named[s.op.name](s) for s in walk(body) if isinstance(s, Let) and s.op.name in named]  # type: ignore[arg-type]


def test_it_moves_into_the_arm_that_reads() -> None:
    take = grid(
        "take", inside(POSITIVE, put("y", rows("x"))), inside("else", put("y", f"pl.mul({rows('t')}, 3.0)"))
    )
    function = parsed(MAKE, take)
    other, _ = recomputed(function)
    (branch,) = (s for s in region(other, "take").body if isinstance(s, If))
    assert (steps(branch.then), steps(branch.orelse)) == (["y"], ["t", "y"])
    check_values(function, other)


def test_it_moves_into_both_arms_that_read() -> None:
    take = grid(
        "take", inside(POSITIVE, put("y", rows("t"))), inside("else", put("y", f"pl.mul({rows('t')}, 3.0)"))
    )
    function = parsed(MAKE, take)
    other, _ = recomputed(function)
    (branch,) = (s for s in region(other, "take").body if isinstance(s, If))
    assert steps(branch.then) == steps(branch.orelse) == ["t", "y"]
    verify(other)
    check_values(function, other)


def test_it_moves_into_a_loop_only_if_the_loop_chooses_the_block() -> None:
    for at, outer, inner in (("b * 2", ["t", "y"], ["y"]), ("i * 2", ["t", "y"], ["t", "y"])):
        loop = inside("for i in pl.range(e)", put("y", f"pl.mul({rows('t', at)}, 2.0)", at))
        function = parsed(MAKE, grid("take", LENGTH, loop, blocks=1))
        other, _ = recomputed(function)
        (found,) = (s for s in region(other, "take").body if isinstance(s, For))
        assert (steps(region(other, "take").body), steps(found.body)) == (outer, inner)
        verify(other)
        check_values(function, other)


def test_it_moves_ahead_of_a_branch_and_a_read_behind_it() -> None:
    take = grid("take", inside(POSITIVE, put("y", rows("t"))), put("z", rows("t")))
    function = parsed(MAKE, take)
    other, _ = recomputed(function)
    assert steps(region(other, "take").body) == ["t", "y", "z"]
    check_values(function, other)


PRODUCT = """for b in pl.spmd(4, name_hint='take'):
    acc = pl.create_tensor([16, 64], pl.FP32)
    for k in pl.pipeline(2, stage=2):
        xk = pl.slice(h, [16, 256], [0, k * 256])
        wk = pl.slice(weight, [64, 256], [b * 64, k * 256])
        if k == 0:
            acc = pl.matmul(xk, wk, b_trans=True, out_dtype=pl.FP32)
        else:
            acc = pl.matmul_acc(acc, xk, wk, b_trans=True)
    pl.assemble(wide, acc, [0, b * 64])
"""
HALF = """h = pl.create_tensor([16, 512], pl.BF16)
for b in pl.spmd(1, name_hint='make'):
    pl.assemble(h, pl.neg(pl.slice(weight, [16, 512], [b * 16, 0])), [b * 16, 0])
"""
SQUARE = (
    "pl.matmul(pl.slice(weight, [16, 32], [0, 0]), pl.slice(weight, [32, 32], [0, 0]), out_dtype=pl.FP32)"
)
OVER = grid("over", put("w", rows("x")))
FROM_W = MAKE.replace("slice(x", "slice(w")
STAYS: dict[str, tuple[str, ...]] = {
    "all reads are under conditions, and are several": (
        MAKE, grid("take", LENGTH, inside("for i in pl.range(e)", "f = pl.read(n, [i])",
            inside("if f >= 0", put("y", rows("t", "f * 2"), "i * 2")),
            inside("if f >= 0", put("z", rows("t", "f * 2"), "i * 2"))), blocks=1)
    ),
    "a load may lie in no block": (
        MAKE, grid("take", put("y", "pl.slice(t, [2, 32], [b * 2, 0], clamp=True)"))
    ),
    "it writes a parameter": (MAKE.replace("(t", "(z"), TAKE.replace("(t", "(z")),
    "it writes a parameter too": (grid("make", put("t", rows("x")), put("z", rows("x"))), TAKE),
    "it has a product": (grid("make", f"pl.assemble(t, {SQUARE}, [b * 16, 0])", blocks=1),
                         grid("take", put("y", rows("t", "0", 16), "0"))),
    "it adds": (MAKE.replace(", 0])\n", ", 0], atomic='add')\n"), TAKE),
    "it writes elements": (
        grid("make", put("t", rows("x")), "pl.write(u, [b * 2, 0], pl.cast(1, pl.FP32))"), TAKE
    ),
    "it writes only a part of an axis": (
        grid("make", "pl.assemble(t, pl.slice(x, [2, 16], [b * 2, 0]), [b * 2, 0])"),
        grid("take", "pl.assemble(y, pl.slice(t, [2, 16], [b * 2, 0]), [b * 2, 0])"),
    ),
    "its blocks overlap": (
        MAKE.replace("[b * 2, 0])\n", "[b, 0])\n"), grid("take", put("y", rows("t", "b"), "b"))
    ),
    "it writes an element twice": (grid("make", put("t", rows("x")), put("t", f"pl.neg({rows('x')})")), TAKE),
    "it writes in a loop": (
        grid("make", inside("for i in pl.range(2)", put("t", f"pl.mul({rows('x')}, pl.cast(i, pl.FP32))"))),
        TAKE,
    ),
    "it writes a view": (
        grid("make", "v = pl.reshape(u, [16, 32])", put("t", rows("x")), put("v", rows("x"))),
        grid("take", put("y", f"pl.add({rows('t')}, {rows('u', '(7 - b) * 2')})")),
    ),
    "the tensor has a first value": (
        "s = pl.create_tensor([16, 32], pl.FP32, init_value=0.0)\n",
        MAKE.replace("(t", "(s"), TAKE.replace("(t", "(s"),
    ),
    "one in between writes what it reads": (FROM_W, OVER, TAKE),
    "one before the last reader writes what it reads": (FROM_W, TAKE, OVER, ALSO),
    "a reader writes what it reads": (FROM_W, TAKE.replace("(y", "(w")),
    "a reader writes what it makes": (MAKE, grid("take", put("y", rows("t")), put("t", rows("x")))),
    "one more writes what it makes": (MAKE, OVER.replace("(w", "(t"), TAKE),
    "a read of two blocks": (MAKE, grid("take", put("y", rows("t", "b * 4", 4), "b * 4"), blocks=4)),
    "a read across two blocks": (MAKE, grid("take", put("y", rows("t", "b * 2 + 1", 1)))),
    "reads of different blocks": (
        MAKE, grid("take", put("y", f"pl.add({rows('t')}, {rows('t', '(7 - b) * 2')})"))
    ),
    "reads of different blocks of two tensors": (
        BOTH, grid("take", put("y", f"pl.add({rows('t')}, {rows('u', '(7 - b) * 2')})"))
    ),
    "one of two readers reads two blocks": (
        MAKE, TAKE, grid("also", put("z", rows("t", "b * 4", 4), "b * 4"), blocks=4)
    ),
    "a loop of the reader chooses the block": (
        MAKE, grid("take", inside("for i in pl.range(8)", put("y", rows("t", "i * 2"), "i * 2")), blocks=1)
    ),
    "a loop of run-time length and a read behind it": (
        MAKE, grid("take", LENGTH, inside("for i in pl.range(e)", put("y", rows("t", "i * 2"), "i * 2")),
                   put("z", rows("t", "0"), "0"), blocks=1)
    ),
    "loads run ahead of the loop that chooses the block": (
        MAKE, grid("take", LENGTH, inside("for i in pl.pipeline(0, e, stage=2)",
                                          put("y", rows("t", "i * 2"), "i * 2")), blocks=1)
    ),
    "an element is read": (
        MAKE, grid("take", "e = pl.read(t, [b * 2, 0])", put("y", f"pl.mul({rows('x')}, e)"))
    ),
    "an element of one block or the next": (
        TILES, grid("take", "q = b // 8 * 8 + b % 16",
                    "pl.assemble(y, pl.slice(t, [4, 1], [0, q]), [0, b])", blocks=16)
    ),
    "the reader is one task": (MAKE, inside("with pl.at(name_hint='take')", put("y", rows("t", "0"), "0"))),
    "the reader is a streamed product": (HALF, PRODUCT),
    "the orchestration reads it": (
        MAKE, TAKE, "e = pl.read(t, [0, 0])\n", inside("if e > 0.0", grid("more", put("z", rows("x"))))
    ),
    "it has another name": (MAKE, "v = pl.reshape(t, [32, 16])\n", TAKE),
    "a reader under a condition": (MAKE, inside(POSITIVE, TAKE)),
    "used outside of the condition": (inside(POSITIVE, MAKE, TAKE), ALSO),
    "used before the condition": (OVER.replace("(w", "(t"), inside(POSITIVE, MAKE, TAKE)),
    "read before": (TAKE, MAKE),
    "nobody reads it": (MAKE,),
}  # fmt: skip


@pytest.mark.parametrize("case", STAYS)
def test_it_stays(case: str) -> None:
    function = parsed(*STAYS[case])
    other, scratch = recomputed(function)
    assert names(other) == names(function) and "make" in names(function)
    assert not scratch
