"""A program as an op of torch.  A function on CPU tensors stands for the launcher: the op is tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from backends.gpu.manifest import Manifest, Parameter
from backends.gpu.torch_op import register, schema

MANIFEST = Manifest(
    "accumulate", "cute", "h200", "sm_90a",
    parameters=(
        Parameter("x", "tensor", "in", "float32", ("ROWS", "8")),
        Parameter("state", "tensor", "inout", "float32", ("ROWS", "8")),
        Parameter("factor", "scalar", "in", "float32"),
        Parameter("shift", "scalar", "in", "int32"),
        Parameter("y", "tensor", "out", "float32", ("ROWS", "8")),
    ),
    workspaces=(), kernels=(), launches=(), source_sha256="a",
)  # fmt: skip


class OnTheCpu:
    """state += x * factor;  y = state + shift."""

    def __init__(self, manifest: Manifest = MANIFEST) -> None:
        self.manifest = manifest
        self.calls = 0

    def __call__(self, args: Mapping[str, Any], /) -> None:
        self.calls += 1
        args["state"].add_(args["x"] * args["factor"])
        args["y"].copy_(args["state"] + args["shift"])


def arguments() -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    x, state = (torch.randn(4, 8, generator=generator) for _ in range(2))
    return x, state, 0.5, 3, torch.full((4, 8), float("nan"))


def test_the_schema_declares_what_is_written() -> None:
    assert schema(MANIFEST.parameters) == (
        "(Tensor x, Tensor(a0!) state, float factor, int shift, Tensor(a1!) y) -> ()"
    )
    private = replace(
        MANIFEST.parameters[0], private=True
    )  # the caller sees nothing of what is written there
    assert schema((private,)) == "(Tensor x) -> ()"


def test_the_op_does_what_the_program_does() -> None:
    program = OnTheCpu(replace(MANIFEST, name="plain"))
    op = register(program)
    x, state, factor, shift, y = arguments()
    want = state + x * factor
    assert op(x, state, factor, shift, y) is None
    assert program.calls == 1
    assert torch.equal(state, want) and torch.equal(y, want + shift)
    assert str(torch.ops.pypto_models.plain.default._schema).startswith(
        "pypto_models::plain(Tensor x, Tensor(a0!) state"
    )


def test_torch_finds_nothing_wrong() -> None:
    op = register(OnTheCpu(replace(MANIFEST, name="checked")))
    result = torch.library.opcheck(op, arguments())
    assert set(result.values()) == {"SUCCESS"} and len(result) >= 3


def test_an_op_that_writes_more_than_it_declares_is_found() -> None:
    parameters = tuple(replace(p, direction="in") if p.name == "state" else p for p in MANIFEST.parameters)
    op = register(OnTheCpu(replace(MANIFEST, name="liar", parameters=parameters)))
    with pytest.raises(Exception, match="state.*mutat|mutat.*state"):
        torch.library.opcheck(op, arguments())


def test_it_is_one_op_inside_torch_compile() -> None:
    program = OnTheCpu(replace(MANIFEST, name="compiled"))
    op = register(program)

    def step(x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        y = torch.empty_like(x)
        op(x * 2, state, 0.5, 1, y)
        op(x, state, 1.0, 0, y)
        return y + state

    x, state, *_ = arguments()
    other = state.clone()
    want = step(x, other)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(x, state)
    assert program.calls == 4
    torch.testing.assert_close(found, want, rtol=0, atol=0)
    assert torch.equal(state, other)


def test_a_name_stands_for_one_program() -> None:
    program = OnTheCpu(replace(MANIFEST, name="unique"))
    op = register(program)
    assert register(OnTheCpu(replace(MANIFEST, name="unique"))) is op
    changed = OnTheCpu(replace(MANIFEST, name="unique", source_sha256="b"))
    with pytest.raises(ValueError, match=r"pypto_models::unique is another program already"):
        register(changed)
    assert register(changed, "unique_too") is not op
    with pytest.raises(ValueError, match="'two words' is no name of an op"):
        register(program, "two words")
