"""Each region with a split runs split and unsplit; a wrong split rule is found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import pypto_models.language as pl
from backends.sim import check_splits
from pypto_models import UserError, compile
from pypto_models.compile import lower_for
from pypto_models.ir.nodes import Let, Region, Stmt
from pypto_models.ir.rewrite import Rewriter, rewrite_regions
from pypto_models.ops import REGISTRY
from pypto_models.target import load_target

M, N, K = 16, 64, 64


@pl.jit
def two_regions(
    x: pl.Tensor[[M, K], pl.BF16], w: pl.Tensor[[N, K], pl.BF16], y: pl.Out[pl.Tensor[[M, N], pl.FP32]]
):
    middle = pl.create_tensor([M, N], pl.FP32)
    for n in pl.spmd(1, name_hint="first", optimizations=[pl.split(pl.SplitMode.UP_DOWN)]):
        product = pl.matmul(
            pl.slice(x, [M, K], [0, 0]), w[n * N : n * N + N, :], out_dtype=pl.FP32, b_trans=True
        )
        pl.assemble(middle, pl.exp(pl.row_expand_sub(product, pl.row_max(product))), [0, 0])
    for n in pl.spmd(1, name_hint="second", optimizations=[pl.split(pl.SplitMode.LEFT_RIGHT)]):
        product = pl.matmul(
            pl.slice(x, [M, K], [0, 0]), w[n * N : n * N + N, :], out_dtype=pl.FP32, b_trans=True
        )
        pl.assemble(y, pl.add(product, middle), [0, 0])


def arguments() -> dict[str, Any]:
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(M, K, generator=g).bfloat16(), torch.randn(N, K, generator=g).bfloat16()
    return {"x": x, "w": w, "y": torch.empty(M, N)}


def test_every_split_region_is_compared() -> None:
    compiled = lower_for(two_regions, (), load_target("h200"))
    args = arguments()
    before = args["y"].clone()
    assert check_splits(compiled, args) == ("first", "second")
    assert torch.equal(args["y"], before)  # the arguments stay as they are


def test_it_is_an_option_of_the_simulator() -> None:
    args = arguments()
    compile(two_regions, platform="h200sim", backend_options={"check_splits": True})(*args.values())
    product = args["x"].float() @ args["w"].float().T
    expected = torch.exp(product - product.amax(1, keepdim=True)) + product
    torch.testing.assert_close(args["y"], expected, rtol=1e-6, atol=1e-6)


def test_a_split_that_changes_the_result_is_named() -> None:
    """The split version of one region computes something else, as a wrong rule would make it."""
    compiled = lower_for(two_regions, (), load_target("h200"))

    class NegInsteadOfExp(Rewriter):
        def stmt(self, s: Stmt) -> Any:
            if isinstance(s, Let) and s.op.name == "exp":
                return replace(s, op=REGISTRY["neg"])
            return s

    def fault(region: Region) -> Region:
        return (
            replace(region, body=NegInsteadOfExp().block(region.body)) if region.name == "first" else region
        )

    function = replace(compiled.function, body=rewrite_regions(compiled.function.body, fault))
    faulty = replace(compiled, function=function)
    with pytest.raises(UserError, match=r"region 'first' gives another result under SplitMode.UP_DOWN: y\["):
        check_splits(faulty, arguments())
