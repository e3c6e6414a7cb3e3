"""Names: pypto's vocabulary, what of it is there, and that models use nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pypto_models.language as pl
from backends.sim import simulate
from pypto_models.ir.nodes import Function
from pypto_models.language.constructs import Marker, Namespace, Unsupported
from pypto_models.language.names import (
    MEMBERS,
    OWN,
    SUPPORTED,
    UNSUPPORTED,
    UNSUPPORTED_JIT,
    UNSUPPORTED_SYSTEM,
    foreign_names,
)
from pypto_models.ops import REGISTRY

from .support import error_of_text, fails, marked, op_names, randn, run, source

REPO = Path(__file__).parents[2]
CORE = pl.Level.CORE_GROUP


def test_the_two_lists_are_disjoint_and_every_name_exists() -> None:
    assert not SUPPORTED.keys() & UNSUPPORTED.keys()
    for name in SUPPORTED:
        assert not isinstance(getattr(pl, name), Unsupported)
    for name in UNSUPPORTED:
        assert isinstance(getattr(pl, name), Unsupported)


def test_everything_of_ours_is_pyptos() -> None:
    """Every public name of the package is in the table, but for what compiles kernels."""
    public = {
        n for n in dir(pl) if isinstance(getattr(pl, n), Marker | Namespace) or n in pl.__all__
    } - UNSUPPORTED.keys()
    assert public - OWN == SUPPORTED.keys()
    for o in REGISTRY:
        for namespace in o.namespaces:
            assert o.spelling in MEMBERS.get(namespace, SUPPORTED) or o.name in INTERNAL


INTERNAL = {"array_get", "array_set"}  # written as subscripts


def test_keywords_of_pypto_are_accepted() -> None:
    for o in REGISTRY:
        known = {name for p in o.params for name in (p.name, *p.synonyms)}
        wanted = MEMBERS.get(o.namespaces[0], SUPPORTED).get(o.spelling, ())
        assert set(wanted) <= known, o.name


# ------------------------------------------------------------------------------------------ tier A
def column(x: torch.Tensor) -> torch.Tensor:
    return x[:, :1]


def row(x: torch.Tensor) -> torch.Tensor:
    return x[:1, :]


# Every operation of the table, spelled in some namespace, positionally or by keyword: expression, value
X, Y, W = randn(16, 64), randn(16, 64, seed=1), randn(64, 32, seed=2)
P = X.abs() + 0.5
TIER_A = {
    "pl.add(x, y)": X + Y, "pl.tensor.add(x, 2.0)": X + 2, "pl.tile.add(lhs=x, rhs=y)": X + Y,
    "pl.sub(x, y)": X - Y, "pl.tile.sub(x, 1)": X - 1, "pl.mul(x, rhs=y)": X * Y,
    "pl.tensor.mul(x, 0.5)": X * 0.5,
    "pl.div(x, p)": X / P, "pl.div(x, 4.0)": X / 4, "pl.maximum(x, y)": torch.maximum(X, Y),
    "pl.minimum(x, 0.0)": X.clamp(max=0), "pl.neg(x)": -X, "pl.abs(input=x)": X.abs(),
    "pl.exp(x)": X.exp(), "pl.log(p)": P.log(), "pl.sqrt(p)": P.sqrt(), "pl.rsqrt(p)": P.rsqrt(),
    "pl.rsqrt(p, high_precision=True)": P.rsqrt(), "pl.tile.recip(p)": 1 / P,
    "pl.cast(pl.cast(x, pl.BF16, mode='rint'), pl.FP32)": X.bfloat16().float(),
    "pl.tile.cast(pl.cast(input=x, target_type=pl.INT32, mode='floor'), pl.FP32)": X.floor(),
    "pl.slice(x, [16, 64], [0, 0])": X,
    "pl.tensor.slice(x, shape=[16, 64], offset=[0, 0], valid_shape=[16, 64])": X,
    "pl.slice(x, [16, 64], [8, 0], clamp=True, pad_value=pl.PadValue.zero)": torch.cat([X[8:], 0 * X[:8]]),
    "pl.slice(pl.neg(x), [16, 64], [0, 0])": -X,
    "pl.tile.reshape(pl.reshape(pl.neg(x), [32, 32]), [16, 64])": -X,
    "pl.assemble(pl.full([16, 64], pl.FP32, 0.0), x, [0, 0])": X,
    "pl.tile.assemble(target=pl.full([16, 64], pl.FP32, 0.0), source=y, offset=[0, 0])": Y,
    "pl.full([16, 64], dtype=pl.FP32, value=3)": torch.full((16, 64), 3.0),
    "pl.tile.full([16, 64], pl.FP32, -1.5)": torch.full((16, 64), -1.5),
    "pl.create_tensor([16, 64], dtype=pl.FP32, init_value=2.0)": torch.full((16, 64), 2.0),
    "pl.reshape(pl.tensor.reshape(x, [8, 128]), shape=[16, 64])": X,
    "pl.row_expand_mul(x, y[:, 0:1])": X * column(Y), "pl.row_expand_sub(x, y[:, 0:1])": X - column(Y),
    "pl.row_expand_div(x, p[:, 0:1])": X / column(P), "pl.row_expand_add(x, y[:, 0:1])": X + column(Y),
    "pl.col_expand_mul(x, y[0:1, :])": X * row(Y), "pl.tensor.col_expand_add(x, y[0:1, :])": X + row(Y),
    "pl.row_expand_mul(x, pl.row_sum(y))": X * Y.sum(1, keepdim=True),
    "pl.row_expand_sub(x, pl.tensor.row_max(x))": X - X.amax(1, keepdim=True),
    "pl.row_expand_sub(x, pl.row_min(input=x))": X - X.amin(1, keepdim=True),
    "pl.row_expand(x, rhs=y[:, 0:1])": column(Y).expand(16, 64),
    "pl.tensor.col_expand(lhs=x, rhs=y[0:1, :])": row(Y).expand(16, 64),
    "pl.tile.row_expand(x, pl.cast(pl.row_argmax(input=y), pl.FP32))": Y.argmax(1)[:, None] * torch.ones(64),
    "pl.col_expand(x, pl.cast(pl.arange(start=9, shape=[1, 64], dtype=pl.INT32, descending=True), pl.FP32))":
        9.0 - torch.arange(64.0).expand(16, 64),
    "pl.matmul(pl.matmul(x, w), w, b_trans=True)": X @ W @ W.T,
    "pl.matmul(x, pl.matmul(w, w, b_trans=True), out_dtype=pl.FP32)": X @ W @ W.T,
    "pl.matmul_acc(pl.matmul(x, z), x, z)": 2 * (X @ W @ W.T),
    "pl.tile.matmul_acc(pl.create_tensor([16, 64], pl.FP32), x, z, init_cond=True)": X @ W @ W.T,
    "pl.transpose(pl.transpose(x, 0, 1), axis1=1, axis2=0)": X,
    "pl.fillpad(pl.set_validshape(x, 16, 64), pad_value=pl.PadValue.min)": X,
    "pl.fillpad(pl.tile.set_validshape(x, 4, 64))": torch.cat([X[:4], 0 * X[4:]]),
    "pl.cmp(x, y, cmp_type=2)": (X < Y).float(), "pl.cmp(x, 0.0, 5)": (X >= 0).float(),
    "pl.mul(x, pl.read(y, [2, 3]))": X * Y[2, 3], "pl.mul(x, pl.tensor.read(y, [2, 3]))": X * Y[2, 3],
    "pl.mul(x, pl.tile.read(pl.neg(y), [2, 3]))": X * -Y[2, 3],
    "pl.mul(x, pl.min(pl.tensor.dim(x, 0), 3) * 1.0)": X * 3, "pl.mul(x, pl.max(2, 3) * 1.0)": X * 3,
}  # fmt: skip


@pytest.mark.parametrize("text", TIER_A)
def test_tier_a(text: str) -> None:
    out = torch.empty(16, 64)
    simulate(_lowered(text), {"x": X, "y": Y, "p": P, "w": W, "z": W @ W.T, "out": out})
    torch.testing.assert_close(out, TIER_A[text], rtol=1e-5, atol=1e-4)


def _lowered(text: str) -> Function:
    return pl.parse(
        "import pypto_models.language as pl\n\n\n@pl.jit\n"
        "def k(x: pl.Tensor[[16, 64], pl.FP32], y: pl.Tensor[[16, 64], pl.FP32],\n"
        "      p: pl.Tensor[[16, 64], pl.FP32],\n"
        "      w: pl.Tensor[[64, 32], pl.FP32], z: pl.Tensor[[64, 64], pl.FP32],\n"
        "      out: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):\n"
        f"    with pl.at(level=pl.Level.CORE_GROUP):\n        out[:, :] = {text}\n"
    )


def test_the_table_covers_every_operation() -> None:
    used = {name for text in TIER_A for name in op_names(_lowered(text))}
    rest = {o.name for o in REGISTRY} - used
    assert rest == {
        "col_expand_sub", "col_expand_div", "col_sum", "col_max", "col_min",  # not of tier A
        "view", "create", "write_tensor", "write_tile", "move",  # their own tests
        "array_create", "array_get", "array_set", "task_dummy",
    }  # fmt: skip


def test_writes_and_moves() -> None:
    @pl.jit
    def kernel(x: pl.Tensor[[16, 64], pl.FP32], out: pl.InOut[pl.Tensor[[16, 64], pl.FP32]]):
        with pl.at(level=CORE):
            pl.write(out, [0, 1], 5.0)
            pl.tensor.write(out, [2, 3], pl.read(x, [4, 5]))
        with pl.at(level=CORE):
            t = pl.move(out[4:8, :], target_memory=pl.Mem.Vec)
            pl.tile.write(t, [1, 1], 7.0)
            out[4:8, :] = t

    out = torch.zeros(16, 64)
    run(kernel, x=X, out=out)
    want = torch.zeros(16, 64)
    want[0, 1], want[2, 3], want[5, 1] = 5.0, X[4, 5], 7.0
    assert torch.equal(out, want)


def test_atomic_add() -> None:
    @pl.jit
    def kernel(x: pl.Tensor[[16, 64], pl.FP32], out: pl.InOut[pl.Tensor[[16, 64], pl.FP32]]):
        for _ in pl.spmd(4):
            out = pl.assemble(out, x, [0, 0], atomic=pl.AtomicType.Add)

    out = torch.ones(16, 64)
    run(kernel, x=X, out=out)
    torch.testing.assert_close(out, 1 + 4 * X)


# ------------------------------------------------------------------------------------------ unsupported
@pytest.mark.parametrize("name", sorted(UNSUPPORTED))
def test_an_unsupported_name_says_so_where_it_is_used(name: str) -> None:
    error = fails(f"with pl.at(level=CORE):\n    t = pl.{name}(x)\n    out[:, :] = x")
    assert (error.code, marked(error)) == ("unsupported", f"pl.{name}(x)")
    assert error.message == f"pl.{name} of pypto.language is not supported: {UNSUPPORTED[name][0]}"
    assert error.fix == UNSUPPORTED[name][1]


def test_unsupported_constructs() -> None:
    for body in ["for i in pl.split_aiv(2):\n    pass", "with pl.cluster():\n    pass"]:
        assert fails(body).code == "unsupported"


def test_unsupported_decorators_keep_the_file_importable() -> None:
    for name, (why, _) in UNSUPPORTED_JIT.items():
        kernels = f"\n@pl.jit.{name}\ndef f(t):\n    pass\n"
        error = error_of_text(source("f(x)\nwith pl.at(level=CORE):\n    out[:, :] = x", kernels))
        assert error.code == "unsupported" and why in error.message
    assert set(UNSUPPORTED_SYSTEM) == {"syncall"}


# ------------------------------------------------------------------------------------------ foreign names
def test_the_models_use_nothing_outside_of_pypto() -> None:
    files = [*REPO.glob("models/**/*.py"), *REPO.glob("examples/**/*.py")]
    assert len(files) > 5
    assert [str(f) for path in files for f in foreign_names(path)] == []


def test_foreign_names_are_found(tmp_path: Path) -> None:
    file = tmp_path / "kernel.py"
    file.write_text(
        "import pypto_models.language as lang\nfrom pypto_models import language as pl\n\n"
        "@pl.jit(auto_scope=False, fast=True)\n"
        "def k(x: lang.Tensor[[16, 64], lang.FP64]):\n"
        "    with pl.at(level=pl.Level.CORE_GROUP, name='a', name_hint='b'):\n"
        "        y = pl.tensor.soften(x)\n"
        "        z = pl.cast(input=y, target_type=pl.BF16, how='rint')\n"
        "        u = pl.sort32(x, anything=1)\n"
        "        pl.system.join()\n"
        "        pl.lower(k)\n"
        "        other.pl.nothing(x)\n"
    )
    assert [(f.span.line, f.name) for f in foreign_names(file)] == [
        (4, "fast= of pl.jit"), (5, "pl.FP64"), (6, "name= of pl.at"), (7, "pl.tensor.soften"), (8,
         "how= of pl.cast"),
        (10, "pl.system.join"), (11, "pl.lower"),
    ]  # fmt: skip
    assert str(foreign_names(file)[1]) == f"{file}:5:32: pl.FP64 is not part of pypto.language"
