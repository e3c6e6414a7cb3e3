"""What the power of the comparisons of the Qwen3.5-27B decode steps is measured on.

    pypto-models power models/qwen3_5_27b/decode_layer.py --config tiny
"""

from __future__ import annotations

from golden.power import Case
from models.common.power import ATTENTION_REASONS, ONE_TOKEN_REASONS, ROW_REASONS, Power
from models.qwen3_5_27b.harness import FULL_LAYER, GDN_LAYER

GDN_REASONS = {
    **ROW_REASONS,
    "if slot >= 0 and first >= 0 and rows > 0:": "a sequence without rows has no trip",
    "series = pl.add(pl.mul(r2, 1.0 / 13.0), 1.0 / 11.0)": "next to nothing where the softplus is small",
    "series = pl.add(pl.mul(series, r2), 1.0 / 9.0)": "next to nothing where the softplus is small",
}
"""Why a fault on a source line of a gated delta net can leave every result as it is."""

FULL_POWER = Power(FULL_LAYER, ATTENTION_REASONS)
ONE_TOKEN = Power(FULL_LAYER, ONE_TOKEN_REASONS, span=1, variant="one_token")
GDN_POWER = Power(GDN_LAYER, GDN_REASONS, {"CONV_TILE": 64, "V_TILE": 32, "GATE_ROWS": 8})
POWERS = (FULL_POWER, ONE_TOKEN, GDN_POWER)


def power_cases(config: str) -> list[Case]:
    """The steps without LM head, in fp32 and in bf16.

    Attention has a kernel of its own for one row of a sequence; the delta net has one for any number.
    """
    return [power_case for power in POWERS for power_case in power.cases(config)]
