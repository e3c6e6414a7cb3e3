"""The contract of a backend is complete: one made from nothing else computes what the simulator does."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pypto_models.language as pl
from pypto_models import UserError, cli, compile
from pypto_models.backend import Bundles, Emits, Reopens, Saved
from pypto_models.compile import backend_table, compile_function, platforms, resolve_platform
from pypto_models.errors import Diag
from pypto_models.ir.nodes import Block, Function, Let, Stmt
from pypto_models.ir.rewrite import Rewriter, walk
from pypto_models.ops import REGISTRY
from pypto_models.ops.registry import op
from tests.random.check import difference_of
from tests.random.strategy import write
from tests.random.writer import Program

from .toy import Interpreter, Run, ToyBackend

TOY = ToyBackend()
SEEDS = range(60)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The simulator and the toy; outside of these tests there is no toy."""
    assert "toy" not in backend_table()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the simulator does: with more, torch adds up a product in another order
    monkeypatch.setattr("backends.BACKENDS", {b.name: b for b in (backend_table()["sim"], TOY)})
    yield
    torch.set_num_threads(threads)


pytestmark = pytest.mark.usefixtures("table")


def bits(x: Tensor) -> Tensor:
    """The elements as integers: a NaN is one only where the other has the same."""
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def copied(args: dict[str, Any]) -> dict[str, Any]:
    return {n: a.clone() if isinstance(a, Tensor) else a for n, a in args.items()}


def compiled(program: Program) -> tuple[Interpreter, Any]:
    """By the toy and by the simulator, for a scratchpad or, where its tiles are not aligned, a GPU."""
    fn = pl.parse(program.source, "kernel")
    for target in ("a2a3", "h200"):
        try:
            made = compile_function(fn, f"{target}:toy").executable
        except UserError as error:
            if error.diag is not Diag.ALIGNMENT or target == "h200":
                raise
        else:
            break
    assert isinstance(made, Interpreter)
    # Unchecked, so that what nothing writes stays as it was in both
    return made, compile_function(fn, f"{target}sim", {"checks": False}).executable


def check(seed: int) -> Function:
    """One random program, run as often as it says: bit for bit as simulated, and as torch computes it."""
    program = write(random.Random(seed).randrange)
    toy, simulation = compiled(program)
    for i in range(len(program.extents)):
        args = program.arguments(i)
        expected, ours, theirs = program.expected(i, args), copied(args), copied(args)
        returned, simulated = toy(ours), simulation(theirs)
        assert len(returned) == len(simulated)
        for name, tensor in ours.items():
            if isinstance(tensor, Tensor):
                assert torch.equal(bits(tensor), bits(theirs[name])), f"seed {seed}: {name} differs"
        for p in program.parameters:
            if p.out is not None:
                found = difference_of(ours[p.name], expected, p.name, p.out.facts.tol)
                assert found is None, f"seed {seed}: {p.name} of run {i}: {found}"
    return toy.function


def contents(seeds: Iterable[int]) -> tuple[set[str], set[str]]:
    """Check programs; the kinds of statements and the ops that they have."""
    stmts = [s for seed in seeds for s in walk(check(seed).body)]
    return {type(s).__name__ for s in stmts}, {s.op.name for s in stmts if isinstance(s, Let)}


def test_random_programs() -> None:
    statements, ops = contents(SEEDS)
    assert statements >= {"Let", "Bind", "For", "If", "Region"}
    assert len(ops) >= 50


@pytest.mark.slow
def test_300_random_programs() -> None:
    _, ops = contents(range(1000, 1300))
    assert set(REGISTRY.by_name) - ops == set(), "an op that no program has"


def first_failure() -> str:
    for seed in SEEDS:
        try:
            check(seed)
        except AssertionError as error:
            return str(error)
    pytest.fail("no program notices")


def test_a_wrong_op_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Run.let

    def let(self: Run, s: Let) -> None:
        swapped = {"maximum": "minimum", "add": "sub"}.get(s.op.name)
        right(self, s if swapped is None else Let(s.results, REGISTRY[swapped], s.args, s.span))

    monkeypatch.setattr(Run, "let", let)
    assert "differs" in first_failure()


def test_a_loop_that_forgets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Run.bind
    monkeypatch.setattr(Run, "bind", lambda self, pairs: right(self, list(pairs)[:1]))
    with pytest.raises((AssertionError, KeyError), match=r"differs|#\d"):
        for seed in SEEDS:
            check(seed)


# ------------------------------------------------------------------------------------------ the driver
@pl.jit
def running_sum(x: pl.Tensor[[4, 16, 64], pl.FP32], y: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP, name_hint="sum"):
        total = pl.full([16, 64], pl.FP32, 0.0)
        for i in pl.range(4):
            total = pl.add(total, x[i, :, :])
        y[:, :] = total


def test_the_driver_takes_it() -> None:
    assert {"a2a3", "h200", "a2a3sim", "h200sim"} <= set(platforms())
    assert resolve_platform("a2a3")[1] is resolve_platform("h200:toy")[1] is TOY
    x, y = torch.randn(4, 16, 64), torch.empty(16, 64)
    seen: list[tuple[int, int, str]] = []
    compile(running_sum, platform="a2a3")(x, y, progress=lambda *at: seen.append(at))
    assert torch.equal(y, x[0] + x[1] + x[2] + x[3])
    assert seen == [(1, 1, "sum")]


def test_the_commands_take_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(TOY, Emits) and isinstance(TOY, Bundles) and isinstance(TOY, Reopens)
    softmax = str(Path(__file__).parents[2] / "examples" / "softmax.py")
    assert cli.main(["emit", softmax, "-p", "h200:toy"]) == 0
    text = capsys.readouterr().out
    assert "@pl.jit" in text and "pl.row_max(" in text
    assert cli.main(["build", softmax, "-p", "a5", "-o", str(tmp_path)]) == 0
    kept = TOY.open(tmp_path)
    assert isinstance(kept, Saved) and [k.name for k in kept.kernels] == ["softmax"]
    x, y = torch.randn(40, 512), torch.empty(40, 512)
    kept(dict(zip([p.name for p in kept.function.params], (x, y), strict=True)))
    torch.testing.assert_close(y, torch.softmax(x, 1))


def test_an_op_that_it_does_not_know_is_refused_by_name() -> None:
    novel = op("novel", *REGISTRY["add"].params, doc="", infer=REGISTRY["add"].infer)

    class Novel(Rewriter):
        def stmt(self, s: Stmt) -> Stmt | Block:
            if isinstance(s, Let) and s.op is REGISTRY["add"]:
                return Let(s.results, novel, s.args, s.span)
            return self.descend(s)

    made = compile(running_sum, platform="a2a3").compiled
    function = made.function
    changed = Function(function.name, function.params, Novel().block(function.body), function.span)
    why = r"pl\.novel has no lowering on the backend toy: its OpDef has no reference"
    with pytest.raises(UserError, match=why) as caught:
        compile_function(changed, "a2a3")
    assert "total = pl.add(total, x[i, :, :])" in str(caught.value)
