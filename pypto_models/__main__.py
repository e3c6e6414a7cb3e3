"""``python -m pypto_models``: the command line, where nothing is installed."""

from __future__ import annotations

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
