"""The decode steps of Qwen3.5-27B as data: command line, comparison and its power follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from models.common.frontdoor import run_front_door
from models.common.harness import LayerKind
from models.common.written import cache_rows, conv_rows, state_rows
from models.qwen3_5_27b import reference
from models.qwen3_5_27b.config import FULL, REAL_HEADS, TINY, VOCAB_GRANULE
from models.qwen3_5_27b.constants import constants
from models.qwen3_5_27b.full_layer import full_decode_layer, full_decode_layer_with_head
from models.qwen3_5_27b.gdn_layer import gdn_decode_layer, gdn_decode_layer_with_head
from models.qwen3_5_27b.inputs import make_inputs
from models.qwen3_5_27b.reference import Layer
from pypto_models.language import Kernel


def _layer(name: Layer, kernels: tuple[Kernel, Kernel], **written: Any) -> LayerKind:
    return LayerKind(
        model="qwen3_5_27b",
        title=f"Qwen3.5-27B decode layer ({name})",
        name=name,
        configs={"full": FULL, "tiny": TINY, "real_heads": REAL_HEADS},
        kernel=kernels[0],
        kernel_with_head=kernels[1],
        constants=partial(constants, layer=name),
        make_inputs=partial(make_inputs, layer=name),
        golden=partial(reference.golden, layer=name),
        exact=partial(reference.exact, layer=name),
        outputs=reference.OUTPUTS,
        written=written,
        head_chunk=VOCAB_GRANULE,
    )


FULL_LAYER = _layer(
    "full", (full_decode_layer, full_decode_layer_with_head), k_cache=cache_rows, v_cache=cache_rows
)
"""Full attention with an output gate."""

GDN_LAYER = _layer(
    "gdn", (gdn_decode_layer, gdn_decode_layer_with_head), conv_state=conv_rows, state=state_rows
)
"""The gated delta net."""

SCRIPT = Path(__file__).with_name("decode_layer.py")


def main(argv: Sequence[str] | None = None, kinds: Sequence[LayerKind] = (FULL_LAYER, GDN_LAYER)) -> int:
    """The command line of `decode_layer.py`; returns the exit status."""
    return run_front_door(kinds, SCRIPT, argv)
