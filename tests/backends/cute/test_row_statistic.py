"""Norms without a kernel of their own: which regions go, which stay, and what the layers keep."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from backends.gpu.module import Module
from models.common.harness import LayerKind
from models.qwen3_5_27b.harness import FULL_LAYER, GDN_LAYER
from models.qwen3_14b.harness import LAYER

from . import norm_kernels as versions
from .norm_kernels import norm_between
from .support import module_of


def kernels(module: Module) -> list[str]:
    return [k.region for k in module.kernels]


@pytest.mark.parametrize("version", [versions.PLAIN, versions.NO_COLUMNS])
@pytest.mark.parametrize("target", ["h200", "gb10"])
def test_a_norm_between_products_goes(version: int, target: str) -> None:
    module = module_of(norm_between, target, VERSION=version)
    assert kernels(module) == ["make", "take"]
    (sums,) = (w for w in module.workspaces if w.name == "middle_sums")
    made = module.kernels[0]
    assert sums.shape == ("16", module.launches[0].grid) and made.how == "stream"  # type: ignore[union-attr]
    assert ("x_columns=" in module.source) == (version == versions.PLAIN)
    assert not any(w.name == "normed" and w.name in module.kernels[1].text for w in module.workspaces)


@pytest.mark.parametrize(
    "version",
    [
        versions.WEIGHTED_SUM, versions.WRITTEN_TWICE, versions.IN_A_LOOP, versions.READ_TWICE,
        versions.READ_LATER,
    ],
)  # fmt: skip
def test_a_norm_that_others_need_stays(version: int) -> None:
    module = module_of(norm_between, VERSION=version)
    assert "norm" in kernels(module) and "middle_sums" not in module.source


@pytest.mark.parametrize("kind", [LAYER, FULL_LAYER, GDN_LAYER], ids=lambda k: f"{k.model}/{k.name}")
def test_the_post_norm_of_every_layer_goes(kind: LayerKind) -> None:
    options = kind.compile_options(kind.configs["full"], "h200", "skip")
    named = kernels(module_of(kind.kernel, "h200", **options["constants"]))
    assert "gate_up_silu" in named and "post_norm" not in named and "final_norm" in named


def test_the_emitted_source(golden_text: Callable[[str, str], None]) -> None:
    golden_text(module_of(norm_between).source, "norm_between")
