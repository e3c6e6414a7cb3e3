"""Comparators: when is a kernel's result the golden's?

A comparator is called as ``cmp(actual, expected, *, actual_outputs, expected_outputs, inputs, rtol, atol)``
and returns ``(passed, message)``. ``actual`` and ``expected`` have one shape and dtype, else it fails; the
two mappings hold every compared tensor by name, for comparators that look at several; ``inputs`` holds what
the kernel only reads. ``rtol`` and ``atol`` are those of the run, for comparators that were not given their
own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from golden.diff import Diff, Within, measure, type_mismatch, unravel
from golden.memory import bits, chunks

Verdict = tuple[bool, str]


class Comparator(Protocol):
    """See the module's description."""

    def __call__(
        self,
        actual: Tensor,
        expected: Tensor,
        *,
        actual_outputs: Mapping[str, Tensor],
        expected_outputs: Mapping[str, Tensor],
        inputs: Mapping[str, Any],
        rtol: float,
        atol: float,
    ) -> Verdict: ...


def label_of(comparator: Comparator, dtype: torch.dtype, rtol: float, atol: float) -> str:
    """How a comparator is named in the report."""
    if comparator is allclose and not dtype.is_floating_point:
        return "exact"
    if comparator is allclose:
        return f"allclose rtol={rtol:g} atol={atol:g}"
    return str(getattr(comparator, "__name__", type(comparator).__name__))


def _tolerance(rtol: float, atol: float) -> Within:
    def within(_actual: Tensor, expected: Tensor, error: Tensor) -> Tensor:
        return error <= atol + rtol * expected.abs()

    return within


def _named(comparator: Callable[..., Verdict], name: str) -> Comparator:
    comparator.__name__ = name
    return comparator


def allclose(actual: Tensor, expected: Tensor, *, rtol: float, atol: float, **_context: Any) -> Verdict:
    """The default: ``|actual - expected| <= atol + rtol * |expected|`` in fp64 for every element.

    Integers and booleans are compared exactly. NaN never matches, also not NaN; equal infinities do.
    """
    if why := type_mismatch(actual, expected):
        return False, why
    if actual.dtype.is_floating_point:
        diff, rule = measure(actual, expected, _tolerance(rtol, atol)), f"rtol={rtol:g} atol={atol:g}"
    else:
        diff, rule = measure(actual, expected), "equality"
    return (False, diff.describe(rule)) if diff.mismatches else (True, "")


def ratio_allclose(
    atol: float | None = None,
    rtol: float | None = None,
    max_error_ratio: float = 0.005,
    max_outlier: float = 1.0,
) -> Comparator:
    """Like :func:`allclose`, but a fraction ``max_error_ratio`` of the elements may be outside the tolerance.

    Even these stay within ``max_outlier * max|expected|`` (``math.inf`` lifts this cap), and NaN or Inf on
    either side fails. ``None`` takes the tolerance of the run.
    """

    def cmp(actual: Tensor, expected: Tensor, **context: Any) -> Verdict:
        if why := type_mismatch(actual, expected):
            return False, why
        a = context["atol"] if atol is None else atol
        r = context["rtol"] if rtol is None else rtol
        diff = measure(actual, expected, _tolerance(r, a))
        cap = max(max_outlier * diff.max_expected, a)
        rule = f"rtol={r:g} atol={a:g} (allowed {max_error_ratio:.3%}, none by more than {cap:.6g})"
        return _ratio_verdict(diff, max_error_ratio, rule, diff.max_error > cap)

    return _named(cmp, f"ratio_allclose(atol={atol}, rtol={rtol}, max_error_ratio={max_error_ratio})")


def ratio_reldiff(diff_thd: float = 0.01, pct_thd: float = 0.05, max_diff_hd: float = math.inf) -> Comparator:
    """At most a fraction ``pct_thd`` of the elements has a relative difference above ``diff_thd``.

    No element may reach ``max_diff_hd``.
    With ``d = |actual - expected|`` the relative difference is ``d`` itself where ``d < diff_thd``, else
    ``d / (max(|actual|, |expected|, 2^-14 / diff_thd) + 1e-9)``. NaN or Inf on either side fails.
    """

    def relative(actual: Tensor, expected: Tensor, error: Tensor) -> Tensor:
        scale = torch.maximum(actual.abs(), expected.abs()).clamp_(min=2.0**-14 / diff_thd) + 1e-9
        return torch.where(error < diff_thd, error, error / scale)

    def cmp(actual: Tensor, expected: Tensor, **_context: Any) -> Verdict:
        if why := type_mismatch(actual, expected):
            return False, why
        largest = 0.0

        def within(a: Tensor, e: Tensor, error: Tensor) -> Tensor:
            nonlocal largest
            difference = relative(a, e, error)
            largest = max(largest, float(difference.nan_to_num(0.0).max()))
            return difference <= diff_thd

        diff = measure(actual, expected, within)
        limits = f"allowed {pct_thd:.3%}; largest {largest:.6g}, cap {max_diff_hd:g}"
        rule = f"relative difference {diff_thd:g} ({limits})"
        return _ratio_verdict(diff, pct_thd, rule, largest > diff_thd and largest >= max_diff_hd)

    return _named(cmp, f"ratio_reldiff(diff_thd={diff_thd}, pct_thd={pct_thd}, max_diff_hd={max_diff_hd})")


def _ratio_verdict(diff: Diff, allowed: float, rule: str, over_cap: bool) -> Verdict:
    if diff.ratio > allowed or over_cap or diff.nonfinite():
        return False, diff.describe(rule)
    return True, f"{diff.mismatches} of {diff.numel} elements outside" if diff.mismatches else ""


def rounding_bound(
    exact: Tensor | Callable[[], Tensor],
    max_ratio: float = 2.0,
    rms_ratio: float = 1.25,
    floor: float = 0.0,
) -> Comparator:
    """No further from the exact result than low precision itself, up to a factor.

    ``exact`` is the fp64 evaluation ``y64`` of the equations, or a callable that returns it once the golden
    has run; the golden (``expected``) is torch's evaluation ``yref`` of the same equations in the kernel's
    precision. Passes if every element is finite and

        max|y - y64| <= max_ratio * max|yref - y64| + floor
        rms(y - y64) <= rms_ratio * rms(yref - y64) + floor

    The run's ``rtol`` and ``atol`` are not used.
    """

    def cmp(actual: Tensor, expected: Tensor, **_context: Any) -> Verdict:
        if why := type_mismatch(actual, expected):
            return False, why
        y64 = exact() if callable(exact) else exact
        if y64.dtype is not torch.float64:
            raise TypeError(f"rounding_bound: exact is {y64.dtype}; evaluate the equations in torch.float64")
        if y64.shape != actual.shape:
            return False, f"shape mismatch: actual {list(actual.shape)}, exact {list(y64.shape)}"
        error = _Error(actual, y64)
        reference = _Error(expected, y64)
        max_limit = max_ratio * reference.max + floor
        rms_limit = rms_ratio * reference.rms + floor
        figures = (
            f"max error {error.max:.6g}, limit {max_limit:.6g} ({max_ratio:g} x {reference.max:.6g}); "
            f"rms error {error.rms:.6g}, limit {rms_limit:.6g} ({rms_ratio:g} x {reference.rms:.6g})"
        )
        # written so that a NaN in any of the four fails
        if error.max <= max_limit and error.rms <= rms_limit and math.isfinite(max_limit):
            ratios = f"max {_times(error.max, reference.max)}, rms {_times(error.rms, reference.rms)}"
            return True, f"{ratios} the reference's"
        diff = measure(actual.double(), y64, _tolerance(0.0, max_limit))
        return False, f"{figures}\n{diff.describe(f'the exact value by {max_limit:.6g}')}"

    return _named(cmp, f"rounding_bound(max_ratio={max_ratio}, rms_ratio={rms_ratio})")


def _times(value: float, reference: float) -> str:
    return f"{value / reference:.2f}x" if reference else "0 over 0"


class _Error:
    """Max and RMS distance of a tensor from an fp64 one; NaN if any element is NaN."""

    def __init__(self, tensor: Tensor, exact: Tensor) -> None:
        self.max, total = 0.0, 0.0
        for _, (t, e) in chunks(tensor.contiguous().reshape(-1), exact.contiguous().reshape(-1)):
            error = t.double() - e
            total += float(torch.dot(error, error))
            largest = float(error.abs_().max())
            self.max = largest if math.isnan(largest) else max(self.max, largest)
            if math.isnan(self.max):
                break
        self.rms = math.sqrt(total / tensor.numel()) if tensor.numel() else 0.0


def topk_pair_compare(vals_name: str) -> Comparator:
    """For the indices of a top-k whose scores are the output ``vals_name``: ties may come in any order.

    Per row (last axis): the sorted scores match within the run's tolerance; an index both sides picked
    carries the same score; an index only the kernel picked carries a score tied with the last one the golden
    picked, the only place where a tie can change the set; no index appears twice unless the golden repeats it
    too.
    """

    def cmp(
        actual: Tensor,
        expected: Tensor,
        *,
        actual_outputs: Mapping[str, Tensor],
        expected_outputs: Mapping[str, Tensor],
        rtol: float,
        atol: float,
        **_context: Any,
    ) -> Verdict:
        if why := type_mismatch(actual, expected):
            return False, why
        if vals_name not in actual_outputs or vals_name not in expected_outputs:
            return False, f"topk_pair_compare: no output {vals_name!r}; outputs are {sorted(actual_outputs)}"
        a_vals, e_vals = actual_outputs[vals_name], expected_outputs[vals_name]
        if a_vals.shape != actual.shape or e_vals.shape != actual.shape:
            return False, (
                f"topk_pair_compare: scores {vals_name!r} have shape {list(a_vals.shape)} (kernel) and "
                f"{list(e_vals.shape)} (golden), indices {list(actual.shape)}"
            )
        a_sorted = a_vals.double().sort(dim=-1, descending=True).values
        e_sorted = e_vals.double().sort(dim=-1, descending=True).values
        diff = measure(a_sorted, e_sorted, _tolerance(rtol, atol))
        if diff.mismatches:
            return False, f"the sorted scores differ\n{diff.describe(f'rtol={rtol:g} atol={atol:g}')}"
        k = actual.shape[-1] if actual.ndim else 1
        rows = [t.reshape(-1, k) for t in (actual, expected, a_vals.double(), e_vals.double())]
        for at in (rows[0] != rows[1]).any(dim=1).nonzero().reshape(-1).tolist():
            if why := _row_of_topk(*(t[at].tolist() for t in rows), rtol=rtol, atol=atol):
                return False, f"row {list(unravel(at, actual.shape[:-1]))}: {why}"
        return True, ""

    return _named(cmp, f"topk_pair_compare({vals_name})")


def _row_of_topk(
    actual: list[int],
    expected: list[int],
    a_vals: list[float],
    e_vals: list[float],
    *,
    rtol: float,
    atol: float,
) -> str:
    """Why one row of picked indices is not a legal top-k, or empty. All four have one length."""
    if len(set(actual)) < len(set(expected)):
        repeated = next(i for i in actual if actual.count(i) > 1)
        return f"index {repeated} is picked {actual.count(repeated)} times"
    score = dict(zip(expected, e_vals, strict=True))
    last = min(e_vals)
    for place, (index, value) in enumerate(zip(actual, a_vals, strict=True)):
        reference = score.get(index, last)
        if abs(value - reference) > atol + rtol * abs(reference):
            role = "its score in the golden" if index in score else "the golden's lowest picked score"
            return f"place {place} picks index {index} with score {value!r}, {role} is {reference!r}"
    return ""


def on_rows(rows: Tensor, comparator: Comparator) -> Comparator:
    """Compare the rows (axis 0) listed in ``rows`` with ``comparator``; no other row may differ by a bit.

    For tensors of which a kernel writes a few rows, such as a KV cache: an average over all rows would dilute
    an error, and what must stay as it was may hold NaN.
    """

    def cmp(actual: Tensor, expected: Tensor, **context: Any) -> Verdict:
        if why := type_mismatch(actual, expected):
            return False, why
        same = bits(actual.contiguous()) == bits(expected.contiguous())
        rest = same.reshape(actual.shape[0], -1).all(dim=1)
        rest[rows] = True
        if not bool(rest.all()):
            wrong = (~rest).nonzero().reshape(-1)
            return False, f"{len(wrong)} rows changed that must not, first {int(wrong[0])}"
        if len(rows) == 0:
            return True, "no row to write"
        return comparator(actual[rows], expected[rows], **context)

    rule = getattr(comparator, "__name__", type(comparator).__name__)
    return _named(cmp, f"{len(rows)} rows by {rule}, the others bit for bit")

