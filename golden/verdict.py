"""The verdict on one tensor, and the test that keeps a verdict honest: could this comparison have failed?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from golden.compare import Comparator, Verdict, allclose, label_of
from golden.diff import Diff, measure, type_mismatch, unravel
from golden.memory import bits, chunks, never_written
from golden.report import Status, TensorReport
from golden.roles import TensorRole

CompareFn = Comparator | Mapping[str, Comparator]


@dataclass(frozen=True)
class Rules:
    """How each compared tensor is compared."""

    compare_fn: CompareFn | None
    rtol: float
    atol: float

    def check(self, compared: Mapping[str, TensorRole]) -> None:
        """Raises ValueError if a comparator is given for something that is not compared."""
        if isinstance(self.compare_fn, Mapping) and (unknown := sorted(set(self.compare_fn) - set(compared))):
            raise ValueError(
                f"compare_fn names {', '.join(map(repr, unknown))}; "
                f"the kernel may change only {sorted(compared)}"
            )

    def comparator(self, name: str) -> Comparator:
        """The comparator of one tensor."""
        if isinstance(self.compare_fn, Mapping):
            return self.compare_fn.get(name, allclose)
        return self.compare_fn or allclose

    def label(self, name: str, dtype: torch.dtype) -> str:
        """What the report calls it."""
        return label_of(self.comparator(name), dtype, self.rtol, self.atol)

    def apply(
        self,
        name: str,
        actual: Mapping[str, Tensor],
        expected: Mapping[str, Tensor],
        inputs: Mapping[str, Any],
    ) -> Verdict:
        """Compare one tensor; an AssertionError of a comparator is its verdict."""
        try:
            return self.comparator(name)(
                actual[name],
                expected[name],
                actual_outputs=actual,
                expected_outputs=expected,
                inputs=inputs,
                rtol=self.rtol,
                atol=self.atol,
            )
        except AssertionError as error:
            return False, str(error) or "the comparator's assertion failed"


def vacuous(
    roles: Mapping[str, TensorRole],
    initial: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    written: Callable[[str], bool],
    rules: Rules,
    inputs: Mapping[str, Any],
) -> dict[str, str]:
    """The tensors whose comparison could not fail, with the reason.

    The comparators are tried on the outcome of a kernel that does nothing: outputs are zero, everything else
    keeps its initial value. What they accept then proves nothing. Neither does a tensor that is to hold one
    value only, unless it began with several.

    ``roles``, ``expected``: the compared tensors. ``initial``: the initial values of those that have one.
    ``written``: whether the golden wrote a tensor.
    """
    idle = {name: initial[name] if name in initial else torch.zeros_like(expected[name]) for name in roles}
    reasons: dict[str, str] = {}
    for name, role in roles.items():
        want, start = expected[name], initial.get(name)
        if not role.declared or type_mismatch(idle[name], want):
            continue  # must stay unchanged, which can fail; or fails anyway
        if want.numel() == 0:
            reasons[name] = "it has no elements"
        elif not written(name):
            reasons[name] = "golden_fn never wrote it"
        elif rules.apply(name, idle, expected, inputs)[0]:
            idle_value = "all zeros" if start is None else "its initial value"
            cause = f"{rules.label(name, want.dtype)} accepts {idle_value}"
            if start is None and not want.float().any():
                cause = "the golden is zero everywhere"
            reasons[name] = f"{cause}, so a kernel that does nothing would pass; choose inputs that give more"
        elif want.numel() > 1 and constant(want) and (start is None or constant(start)):
            everywhere = f"the golden is {want.reshape(-1)[0].item()!r} everywhere"
            reasons[name] = f"{everywhere}, so a misplaced element cannot show; vary the inputs"
    return reasons


def constant(tensor: Tensor) -> bool:
    """Whether all elements hold the same bits."""
    words = bits(tensor.contiguous())
    return all(bool((part == words[0]).all()) for _, (part,) in chunks(words))


def judge(
    role: TensorRole,
    actual: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    why_vacuous: str | None,
    rules: Rules,
    inputs: Mapping[str, Any],
) -> TensorReport:
    """Compare one tensor that the kernel may change."""
    name = role.spec.name
    got, want = actual[name], expected[name]

    def report(status: Status, detail: str, rule: str, diff: Diff | None = None) -> TensorReport:
        worst = diff.worst if diff else None
        if worst and status == "PASS" and math.isinf(worst.error):
            worst = None  # NaN or Inf that the comparator accepts: only the finite errors say something
        return TensorReport(
            name=name,
            status=status,
            role=role.role,
            shape=tuple(got.shape),
            dtype=str(got.dtype),
            rule=rule,
            detail=detail,
            max_error=worst.error if worst else diff.max_error if diff and status == "PASS" else None,
            worst_index=worst.index if worst else None,
        )

    if why := type_mismatch(got, want):
        return report("FAIL", why, "golden of another type")
    if role.role == "output" and (why := unwritten(got, want)):
        return report("FAIL", why, "never written")
    diff = measure(got, want)
    rule = rules.label(name, got.dtype)
    passed, message = rules.apply(name, actual, expected, inputs)
    if not passed:
        hint = f"\n{why_vacuous}" if why_vacuous and why_vacuous.startswith("golden_fn") else ""
        return report("FAIL", message + hint, rule, diff)
    if why_vacuous:
        return report("SKIPPED", why_vacuous, rule, diff)
    return report("PASS", message, rule, diff)


def unwritten(actual: Tensor, expected: Tensor | None = None) -> str:
    """Why a pure output counts as not written, or empty.

    One byte has no value to spare for a sentinel: such integers are reported only if no element was written.
    So is everything without a golden, which alone tells which elements are to be written.
    """
    mask = never_written(actual, expected)
    count, numel = int(mask.sum()), actual.numel()
    if numel and count == numel:
        return "the kernel never wrote it"
    ambiguous = actual.dtype.itemsize == 1 and not actual.dtype.is_floating_point
    if not count or ambiguous or expected is None:
        return ""
    first = unravel(int(mask.to(torch.uint8).argmax()), actual.shape)
    return (
        f"{count} of {numel} elements ({count / numel:.3%}) were never written, the first at {list(first)}; "
        "if they are to keep their value, declare the parameter pl.InOut"
    )
