"""Compare a kernel with a torch golden, so that a PASS means something.

    from golden import ScalarSpec, TensorSpec, run_jit

    result = run_jit(kernel, specs=[TensorSpec("x", [64, 64], torch.float32, init_value=torch.randn), ...],
                     golden_fn=golden, rtol=1e-3, atol=1e-3)
    if not result.passed:
        print(result.error)
        raise SystemExit(1)

The calls and the log follow pypto-lib's harness. Inputs are seeded, outputs start poisoned, everything the
kernel may change is compared, everything else must stay as it was, and a comparison that could not fail is
SKIPPED.
"""

from __future__ import annotations

from golden.compare import (
    Comparator,
    allclose,
    on_rows,
    ratio_allclose,
    ratio_reldiff,
    rounding_bound,
    topk_pair_compare,
)
from golden.execute import execute_and_compare
from golden.program import Param, Program
from golden.report import RunResult, TensorReport
from golden.runner import run, run_jit
from golden.spec import ScalarSpec, TensorSpec

__all__ = [
    "Comparator",
    "Param",
    "Program",
    "RunResult",
    "ScalarSpec",
    "TensorReport",
    "TensorSpec",
    "allclose",
    "execute_and_compare",
    "on_rows",
    "ratio_allclose",
    "ratio_reldiff",
    "rounding_bound",
    "run",
    "run_jit",
    "topk_pair_compare",
]
