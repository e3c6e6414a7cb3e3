"""Every block of the decoder layer of Qwen3-14B as a kernel of its own, each with its comparison.

    pypto-models power models/qwen3_14b/blocks.py --config tiny
"""

from __future__ import annotations

from golden.power import Case
from models.common.blocks import block_cases
from models.common.layer_blocks import attention_blocks, shared_blocks
from models.qwen3_14b.harness import LAYER
from models.qwen3_14b.power import POWER


def power_cases(config: str) -> list[Case]:
    """Every block in fp32 and in bf16."""
    sizes = LAYER.configs[config]
    return block_cases(POWER, config, [*shared_blocks(sizes), *attention_blocks(sizes)])
