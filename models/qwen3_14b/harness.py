"""The decode step of Qwen3-14B as data: its command line, its comparison and their power follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from models.common.frontdoor import run_front_door
from models.common.harness import LayerKind
from models.common.written import cache_rows
from models.qwen3_14b import reference
from models.qwen3_14b.config import FULL, TINY, VOCAB_GRANULE
from models.qwen3_14b.constants import constants
from models.qwen3_14b.decode_layer import decode_layer, decode_layer_with_head
from models.qwen3_14b.inputs import make_inputs


def _layer() -> LayerKind:
    return LayerKind(
        model="qwen3_14b",
        title="Qwen3-14B decode layer",
        name="full",
        configs={"full": FULL, "tiny": TINY},
        kernel=decode_layer,
        kernel_with_head=decode_layer_with_head,
        constants=constants,
        make_inputs=make_inputs,
        golden=reference.golden,
        exact=reference.exact,
        outputs=reference.OUTPUTS,
        written={"k_cache": cache_rows, "v_cache": cache_rows},
        head_chunk=VOCAB_GRANULE,
    )


LAYER = _layer()

SCRIPT = Path(__file__).with_name("decode_layer.py")


def main(argv: Sequence[str] | None = None, kinds: Sequence[LayerKind] = (LAYER,)) -> int:
    """The command line of `decode_layer.py`; returns the exit status."""
    return run_front_door(kinds, SCRIPT, argv)
