"""What backends say of ops is so: every op has an answer, and one with a rule is in a program that lowers."""

from __future__ import annotations

import random

import pytest

import pypto_models.language as pl
from backends import BACKENDS
from backends.sim import SimBackend
from pypto_models.backend import Emits, Supports
from pypto_models.compile import lower_function
from pypto_models.errors import Diag, UserError
from pypto_models.ir.nodes import Let
from pypto_models.ir.rewrite import walk
from pypto_models.ops import REGISTRY, OpDef
from pypto_models.target import known_targets, load_target
from tests.random.strategy import write
from tools import pages

TOLD = [name for name, b in BACKENDS.items() if isinstance(b, Supports)]
WRITERS = [name for name in TOLD if isinstance(BACKENDS[name], Emits)]
PROGRAMS = 400  # at most, until every op was in one


@pytest.mark.parametrize("name", TOLD)
def test_every_op_has_an_answer(name: str) -> None:
    backend = BACKENDS[name]
    assert isinstance(backend, Supports)
    for o in REGISTRY:
        answer, _, why = backend.support(o.name).partition(": ")
        assert answer in ("rule", "decomposition", "unsupported"), o.name
        assert bool(why) == (answer == "unsupported"), o.name


@pytest.mark.parametrize("name", WRITERS)
def test_the_answers_are_those_of_the_lowering(name: str) -> None:
    """Random programs lower, or are refused for an element type or a form; never an op that has a rule."""
    backend = BACKENDS[name]
    assert isinstance(backend, Supports) and isinstance(backend, Emits)
    target = next(t for t in map(load_target, known_targets()) if backend.covers(t) is None)
    claimed = {o.name for o in REGISTRY if not backend.support(o.name).startswith("unsupported")}
    lowered: set[str] = set()
    for seed in range(PROGRAMS):
        if claimed <= lowered:
            break
        compiled = lower_function(pl.parse(write(random.Random(seed).randrange).source, "kernel"), target)
        try:
            backend.emit(compiled)
        except UserError as error:
            assert error.diag is Diag.BACKEND_OP, str(error)
            continue
        lowered |= {s.op.name for s in walk(compiled.function.body) if isinstance(s, Let)}
    assert claimed - lowered == set(), "it is said to have a rule, and no program with it lowers"
    assert lowered - claimed == set(), "it is said to have no rule, and programs with it lower"


def test_the_page_shows_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(SimBackend):
        name = "half"

        def support(self, op: str) -> str:
            return "unsupported: it has no cube unit" if op == "matmul_acc" else super().support(op)

    monkeypatch.setattr("backends.BACKENDS", {"sim": SimBackend(), "half": Half()})
    head, _, *rows = pages.support().splitlines()
    assert head == "| operations | sim | half |"
    assert [row for row in rows if "product" in row] == [
        "| Matrix products: `matmul` | rule | rule |",
        "| Matrix products: `matmul_acc` | rule | unsupported: it has no cube unit |",
    ]
    assert [o.name for o in REGISTRY if f"`{o.name}`" not in "".join(rows)] == []


def test_an_op_without_a_reference_is_said() -> None:
    add: OpDef = REGISTRY["add"]
    reference = add.reference
    object.__setattr__(add, "reference", None)  # OpDefs are frozen
    try:
        assert SimBackend().support("add") == "unsupported: its OpDef has no reference"
    finally:
        object.__setattr__(add, "reference", reference)
