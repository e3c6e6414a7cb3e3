"""What a kernel does before it waits for the ones before it, and who may still run then."""

from __future__ import annotations

import re
import textwrap

import pytest

import pypto_models.language as pl
from backends.cute.compiler import CuteToolchain
from backends.cute.lower import lower
from backends.cute.waiting import readers
from backends.gpu.module import Module
from backends.gpu.scan import lets
from backends.gpu.toolchain import Refusal, Unit
from pypto_models.compile import lower_function
from pypto_models.ir.nodes import Region
from pypto_models.ir.rewrite import walk
from pypto_models.target import load_target

from . import norm_kernels as versions
from .norm_kernels import norm_between
from .support import module_of, needs_cutlass

H200 = load_target("h200")
HEAD = """import pypto_models.language as pl

R = pl.dynamic("R")

@pl.jit
def kernel(
    x: pl.InOut[pl.Tensor[[16, 64], pl.BF16]],
    keys: pl.InOut[pl.Tensor[[512, 64], pl.BF16]],
    low: pl.Tensor[[1, 64], pl.FP32],
    high: pl.Tensor[[1, 64], pl.FP32],
    n: pl.Tensor[[4], pl.INT32],
    y: pl.InOut[pl.Tensor[[R, 64], pl.FP32]],
    z: pl.InOut[pl.Tensor[[64, 64], pl.FP32]],
):
    q = pl.create_tensor([16, 64], pl.BF16)
"""


def neg(name: str, source: str, to: str, blocks: str = "8") -> str:
    """A region that reads one tensor and writes another, two rows a block."""
    tile = f"pl.neg(pl.slice({source}, [2, 64], [b * 2, 0]))"
    return f"for b in pl.spmd({blocks}, name_hint='{name}'):\n    pl.assemble({to}, {tile}, [b * 2, 0])\n"


def take(*before: str, loop: str = "", after: str = "", start: str = "0", rows: str = "keys") -> str:
    """A region whose K loop runs ahead, with statements before, in and behind the loop."""
    body = f"""asked = pl.slice(q, [16, 64], [0, 0])
acc = pl.create_tensor([16, 64], pl.FP32)
for k in pl.pipeline({start}, 8, stage=2):
    tile = pl.slice({rows}, [64, 64], [k * 64, 0])
    scores = pl.exp(pl.matmul(asked, tile, b_trans=True, out_dtype=pl.FP32))
    if k == {start}:
        acc = scores
    else:
        acc = pl.add(acc, scores)
{loop}
pl.assemble(y, acc, [b * 16, 0])
{after}
"""
    return "for b in pl.spmd(4, name_hint='take'):\n" + textwrap.indent("\n".join((*before, body)), "    ")


def looped(*parts: str) -> str:
    """Regions in a loop whose trips the launcher counts."""
    return "for i in pl.range(pl.tensor.dim(y, 0)):\n" + textwrap.indent("".join(parts), "    ")


def lowered(*parts: str) -> Module:
    text = HEAD + textwrap.indent("".join(parts), "    ")
    return lower(lower_function(pl.parse(text, "kernel"), H200).function, H200)


def text_of(module: Module, name: str) -> str:
    (found,) = (k.text for k in module.kernels if k.name == name)
    return found


WAIT = "griddepcontrol_wait"
RING = r"block\.copy_rows\(\(keys"


def rings_before_the_wait(kernel: str) -> int:
    """How many trips' loads begin before the wait; it is an error if no loop runs ahead at all."""
    before, _, after = kernel.partition(WAIT)
    assert re.search(RING, after)
    return len(re.findall(RING, before))


FIRST = neg("first", "x", "q")
UNSURE = neg("first", "x", "q", "pl.tensor.dim(y, 0) // 64")
PUT = "pl.assemble(keys, pl.slice(x, [2, 64], [0, 0]), [b * 2, 0])"


# ------------------------------------------------------------------------------------------ loops run ahead
@pytest.mark.parametrize(("rows", "trips"), [(8, 8), (32, 8), (40, 2), (64, 2)])
def test_the_loads_of_many_trips_wait_together_where_they_are_few(rows: int, trips: int) -> None:
    """At most 8 elements of a thread in a trip; there is no barrier between two of them."""
    body = f"""for b in pl.spmd(4, name_hint='add'):
    acc = pl.full([{rows}, 64], pl.FP32, 0.0)
    for t in pl.range(pl.cast(pl.read(n, [b]), pl.INDEX)):
        acc = pl.add(acc, pl.slice(z, [{rows}, 64], [t % 2, 0]))
    pl.assemble(y, acc, [b * {rows}, 0])
"""
    (loop,) = re.findall(r"for t in .*unroll=(\d+)\)", text_of(lowered(body), "add"))
    assert int(loop) == trips


def test_the_first_loads_of_a_loop_begin_before_the_wait() -> None:
    kernel = text_of(lowered(FIRST, take()), "take")
    assert rings_before_the_wait(kernel) == 3
    before, after = kernel.split(WAIT)
    assert "q +" not in before and "block.copy_rows_now((q" in after.split("cutlass.range(Int32")[0]


def test_an_operand_joins_the_copies_where_no_loop_has_begun() -> None:
    kernel = text_of(lowered(neg("first", "x", "keys"), neg("second", "x", "q"), take()), "take")
    assert "copy_rows_now" not in kernel and "block.copy_rows((q" in kernel


EARLY: dict[str, tuple[tuple[str, ...], int]] = {
    "nobody writes it": ((FIRST, take()), 3),
    "it writes it behind the loop": ((FIRST, take(after=PUT)), 3),
    "a later region writes it": ((FIRST, take(), neg("more", "x", "keys")), 3),
    "it writes another before the loop": (
        (FIRST, take("pl.assemble(z, pl.mul(pl.slice(z, [16, 64], [b * 16, 0]), 2.0), [b * 16, 0])")), 3
    ),
    "an earlier region writes it": ((neg("before", "x", "keys"), FIRST, take()), 0),
    "the region before it writes it": ((FIRST, neg("before", "q", "keys"), take()), 0),
    "it writes it before the loop": ((FIRST, take(PUT)), 0),
    "a branch before the loop writes it": (
        (FIRST, take("if pl.read(n, [0]) > 0:", "    " + PUT)), 0
    ),
    "it starts where a constant says": (
        (FIRST, take("first = pl.cast(pl.read(n, [b]), pl.INDEX)", start="first")), 3
    ),
    "it starts where the region before says": (
        (
            "m = pl.create_tensor([4], pl.INT32)\n",
            "for b in pl.spmd(4, name_hint='count'):\n    pl.write(m, [b], pl.cast(b, pl.INT32))\n",
            FIRST, take("first = pl.cast(pl.read(m, [b]), pl.INDEX)", start="first"),
        ), 0,
    ),
    "in a loop of launches, behind itself": ((FIRST, looped(take(after=PUT))), 0),
    "in a loop of launches, where nobody writes it": ((FIRST, looped(take())), 3),
    "in a loop of launches, behind one that has waited for the last": ((looped(FIRST, take(after=PUT)),), 3),
    "behind one that may not run, written later": ((UNSURE, take(after=PUT)), 3),
    "behind one that may not run, written earlier": ((neg("before", "x", "keys"), UNSURE, take()), 0),
    "of the first kernel": ((take().replace("slice(q", "slice(x"),), 0),
}  # fmt: skip


@pytest.mark.parametrize("case", EARLY)
def test_when_the_first_loads_begin_before_the_wait(case: str) -> None:
    parts, expected = EARLY[case]
    assert rings_before_the_wait(text_of(lowered(*parts), "take")) == expected


def entries(*trip: str, before: str = "", after: str = "", last: str = "n") -> str:
    """A region whose blocks take as many entries as an element of a tensor says, with a K loop for each."""
    _, body = take(*trip).replace("b * 16", "e * 16").split("\n", 1)
    head = f"last = pl.cast(pl.read({last}, [b]), pl.INDEX)\n{before}\nfor e in pl.range(b, last):\n"
    inner = f"{head}{textwrap.indent(textwrap.dedent(body), '    ')}{after}\n"
    return "for b in pl.spmd(4, name_hint='take'):\n" + textwrap.indent(inner, "    ")


def test_a_loop_over_entries_begins_its_ring_before_the_wait_in_every_trip() -> None:
    kernel = text_of(lowered(FIRST, entries()), "take")
    trip = kernel.index(" for e in ")
    before, _, behind = kernel[trip:].partition(WAIT)
    assert len(re.findall(RING, before)) == 3 and re.search(RING, behind)
    assert WAIT not in kernel[:trip] and not re.search(RING, kernel[:trip])
    assert "(q +" not in before and "(y" not in before  # what the kernel before makes, and what this one does
    waits = re.findall(r"^( +)cute\.arch\.griddepcontrol_wait", kernel, flags=re.MULTILINE)
    assert [len(x) for x in waits] == [8, 4]  # in every trip, and behind them: there may be none


SUM = "    total = pl.add(total, acc)\npl.assemble(z, total, [b * 16, 0])"
MADE = (
    "m = pl.create_tensor([4], pl.INT32)\n",
    "for b in pl.spmd(4, name_hint='count'):\n    pl.write(m, [b], pl.cast(b, pl.INT32))\n",
)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param(
            (FIRST, entries(before="total = pl.full([16, 64], pl.FP32, 0.0)", after=SUM)),
            id="it carries something",
        ),
        pytest.param((*MADE, FIRST, entries(last="m")), id="its length is made before"),
        pytest.param((FIRST, entries(before=PUT)), id="behind a store"),
    ],
)
def test_other_loops_wait_before_their_first_trip(parts: tuple[str, ...]) -> None:
    kernel = text_of(lowered(*parts), "take")
    assert kernel.count(WAIT) == 1 and kernel.index(WAIT) < kernel.index(" for e in ")
    assert len(re.findall(RING, kernel)) == 4


# --------------------------------------------------------------------------------------- what it may count on
READ_AHEAD: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "one before that surely runs": ((FIRST, take()), ()),
    "one before that may not run": ((UNSURE, take()), ("keys",)),
    "what it writes later, from a constant": ((UNSURE, take(after=PUT)), ("x", "keys")),
    "one before that may not run, behind one that does": ((FIRST, UNSURE, take()), ("keys",)),
    "the first kernel reads elements": (
        ("e = pl.cast(pl.read(n, [0]), pl.INDEX)\n", FIRST.replace("[b * 2, 0])\n", "[e, 0])\n")),
        ("n",),
    ),
    "nothing": ((neg("first", "x", "q"),), ()),
}  # fmt: skip


@pytest.mark.parametrize("case", READ_AHEAD)
def test_what_no_program_before_may_still_write(case: str) -> None:
    parts, expected = READ_AHEAD[case]
    assert lowered(*parts).early == expected


def test_a_stream_triggers_late_for_a_kernel_that_runs_block_by_block() -> None:
    def late(version: int) -> dict[str, str]:
        module = module_of(norm_between, VERSION=version)
        return {k.name: re.findall(r"late=(\w+)", k.text)[0] for k in module.kernels if k.how == "stream"}

    assert late(versions.PLAIN) == {"make": "False", "take": "False"}
    assert late(versions.WRITTEN_TWICE) == {"make": "True", "take": "False"}
    assert late(versions.READ_LATER) == {"make": "True", "take": "True"}


def test_behind_a_stream_that_triggers_late_a_kernel_reads_ahead_what_that_does_not_write() -> None:
    module = module_of(norm_between, VERSION=versions.WRITTEN_TWICE)  # make, again: x to middle; norm, take
    before, after = text_of(module, "again").split(WAIT)
    assert "(x, " in before and "(middle, " in after and "(middle, " not in before
    assert "x" not in module.early and set(module.early) == {"first", "second"}  # weights of streams
    before, after = text_of(module, "norm").split(WAIT)
    assert "(scale" in before and "(middle" in after and "(middle" not in before.split("):", 1)[1]


# ------------------------------------------------------------------------------------------ small tiles
ASKS = ("left = pl.slice(low, [1, 64], [0, 0])", "right = pl.slice(high, [1, 64], [0, 0])")
SCALED = (
    "scaled = pl.col_expand_mul(pl.col_expand_mul(pl.slice(z, [16, 64], [b * 16, 0]), left), right)",
    "pl.assemble(z, scaled, [b * 16, 0])",
)


def test_small_tiles_come_to_shared_memory_together() -> None:
    kernel = text_of(lowered(FIRST, take(*ASKS, *SCALED)), "take")
    before, after = kernel.split(WAIT)
    order = re.findall(r"block\.load_rows\(\((\w+)|block\.put_rows\((\w+)|(sync_threads)", before)
    assert ["".join(x) for x in order] == ["low", "high", "left_held", "right_held", "sync_threads"]
    assert "load_rows" not in after and "put_rows" not in after


def test_the_first_loads_of_a_loop_begin_while_small_tiles_are_on_their_way() -> None:
    """Also before statements that need no more than these."""
    kernel = text_of(lowered(FIRST, take(*ASKS, "left = pl.mul(left, right)", *SCALED)), "take")
    before = kernel.split(WAIT)[0]
    assert (
        before.index("right_held = ") < before.index("copy_rows((keys") < before.index("put_rows(left_held")
    )


def test_small_tiles_behind_the_wait_do_not() -> None:
    behind = ("left = pl.slice(z, [1, 64], [0, 0])", "right = pl.slice(z, [1, 64], [1, 0])")
    assert "load_rows" not in text_of(lowered(neg("before", "z", "z"), FIRST, take(*behind, *SCALED)), "take")


OFTEN = ("left = pl.slice(z, [16, 64], [0, 0])", "right = pl.slice(z, [16, 64], [16, 0])")
TWICE = "pl.mul(pl.mul(left, left), pl.mul(right, right))"
ONCE = "pl.mul(left, right)"


def put_in_x(what: str) -> str:
    return f"pl.assemble(x, pl.cast({what}, pl.BF16, mode='rint'), [0, 0])"


def test_tiles_that_are_read_often_come_together_behind_the_wait() -> None:
    kernel = text_of(lowered(neg("before", "z", "z"), FIRST, take(*OFTEN, after=put_in_x(TWICE))), "take")
    before, behind = kernel.split(WAIT)
    assert not re.search(r"block\.(load|put)_rows", before)
    order = re.findall(r"block\.load_rows\(\((\w+)|block\.put_rows\((\w+)|(sync_threads)|(for k in)", behind)
    found = ["".join(x) for x in order]
    # the first barrier is theirs, the second that of the product's operand
    expected = ["z", "z", "left_held", "right_held", "sync_threads", "sync_threads", "for k in"]
    assert found[: len(expected)] == expected
    assert not re.search(r"block\.element\(z\b", kernel)  # nobody reads them again


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(take(*OFTEN, after=put_in_x(ONCE)), id="read once"),
        pytest.param(take(*OFTEN, after=put_in_x("pl.mul(pl.exp(left), right)")), id="through others"),
        pytest.param(
            take("left = pl.slice(z, [64, 64], [0, 0])", after="pl.assemble(y, pl.mul(left, left), [0, 0])"),
            id="large",
        ),
        pytest.param(
            take(*OFTEN, after=put_in_x(TWICE).replace("(x", "(z").replace("pl.BF16", "pl.FP32")),
            id="written here",
        ),
    ],
)  # fmt: skip
def test_others_do_not(body: str) -> None:
    kernel = text_of(lowered(neg("before", "z", "z"), FIRST, body), "take")
    assert "load_rows" not in kernel and "put_rows" not in kernel


def test_large_tiles_do_not() -> None:
    large = ("left = pl.slice(keys, [16, 64], [0, 0])", "pl.assemble(z, pl.cast(left, pl.FP32), [b * 16, 0])")
    assert "load_rows" not in text_of(lowered(FIRST, take(*large)), "take")


def test_how_often_a_tile_is_read() -> None:
    """An operand of a product has a copy of its own."""
    square = "pl.matmul(half, half, b_trans=True, out_dtype=pl.FP32)"
    for what, times in (("pl.mul(half, half)", 2), ("half", 1), (square, 0)):
        text = HEAD + textwrap.indent(
            take("half = pl.slice(x, [16, 64], [0, 0])", after=put_in_x(what)), "    "
        )
        text = text.replace("pl.assemble(x, pl.cast(half,", "pl.assemble(x, pl.cast(pl.neg(half),")
        body = lower_function(pl.parse(text, "kernel"), H200).function.body
        (region,) = (s for s in walk(body) if isinstance(s, Region))
        (half,) = (
            r for x in lets(region.body) for r in x.results if x.op.name == "load" and r.name == "half"
        )
        assert readers(region.body, half) == times


# --------------------------------------------------------------------------------------------- scratch
MAKE = """for b in pl.spmd(8, name_hint='make'):
    if b < 8:
        pl.assemble(q, pl.neg(pl.slice(x, [2, 64], [b * 2, 0])), [b * 2, 0])
"""
USE = """for b in pl.spmd(8, name_hint='use'):
    pl.assemble(z, pl.cast(pl.slice(q, [2, 64], [b * 2, 0]), pl.FP32), [b * 2, 0])
"""
STORE = r"block\.(store\w*\(|element\()\(?q\b.*\[0\] = |block\.store\w*\(\(?q\b"


def test_what_is_worked_out_again_need_not_wait() -> None:
    """The store to scratch, if the kernel before does not write what it is made of."""
    some = "pl.tensor.dim(y, 0) // 64"
    for source, blocks, early in (("z", "8", True), ("x", "8", False), ("z", some, False)):
        first = neg("other", source, source, blocks)
        module = lowered(first, MAKE, USE)
        assert [k.region for k in module.kernels] == ["other", "use"], first
        before, _, after = text_of(module, "use").partition(WAIT)
        assert bool(re.search(STORE, before)) == early and bool(re.search(STORE, after)) != early


@needs_cutlass
@pytest.mark.slow
def test_they_compile() -> None:
    modules = [lowered(FIRST, take(after=PUT)), lowered(FIRST, take(*ASKS, *SCALED))]
    units = [Unit(m.source, [k for k in m.kernels if k.name == "take"]) for m in modules]
    for code in CuteToolchain().compile_units(units, "sm_90a"):
        assert not isinstance(code, Refusal), code
        (kernel,) = code.values()
        assert ".local" not in kernel.text
        assert re.search(r"cp\.async.*griddepcontrol\.wait", kernel.text, re.DOTALL)
