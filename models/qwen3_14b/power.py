"""What the power of the comparison of a Qwen3-14B decode step is measured on.

    pypto-models power models/qwen3_14b/decode_layer.py --config tiny
"""

from __future__ import annotations

from golden.power import Case
from models.common.power import ATTENTION_REASONS, ONE_TOKEN_REASONS, Power
from models.qwen3_14b.harness import LAYER

POWER = Power(LAYER, ATTENTION_REASONS)
ONE_TOKEN = Power(LAYER, ONE_TOKEN_REASONS, constants={"MERGE_RUNS": 1}, span=1, variant="one_token")


def power_cases(config: str) -> list[Case]:
    """The step without LM head in fp32 and in bf16: several rows of a sequence, and one."""
    return [*POWER.cases(config), *ONE_TOKEN.cases(config)]
