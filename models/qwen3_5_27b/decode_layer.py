"""A decode step of one layer of Qwen3.5-27B, of either kind: compile, run and check it (see --help).

    python models/qwen3_5_27b/decode_layer.py --layer gdn --lm-head skip

The layers are in `full_layer.py` and `gdn_layer.py`.
"""

from __future__ import annotations

import sys

from golden.power import Case
from models.qwen3_5_27b import power
from models.qwen3_5_27b.harness import main


def power_cases(config: str) -> list[Case]:
    """What `pypto-models power` runs on this file: both kinds of layer; see `power.py`."""
    return power.power_cases(config)


if __name__ == "__main__":
    sys.exit(main())
