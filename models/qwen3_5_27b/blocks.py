"""Every block of the layers of Qwen3.5-27B as a kernel of its own, each with its comparison.

    pypto-models power models/qwen3_5_27b/blocks.py --config tiny
"""

from __future__ import annotations

from golden.power import Case
from models.common.blocks import block_cases
from models.common.layer_blocks import attention_blocks, shared_blocks
from models.qwen3_5_27b.gdn_blocks import gdn_blocks
from models.qwen3_5_27b.harness import FULL_LAYER
from models.qwen3_5_27b.power import FULL_POWER, GDN_POWER


def power_cases(config: str) -> list[Case]:
    """Every block in fp32 and in bf16."""
    sizes = FULL_LAYER.configs[config]
    full = block_cases(FULL_POWER, config, [*shared_blocks(sizes), *attention_blocks(sizes)])
    return [*full, *block_cases(GDN_POWER, config, gdn_blocks(sizes))]
