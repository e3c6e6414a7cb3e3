"""The harness against kernels and goldens that are wrong in the ways that once passed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from golden import RunResult, ScalarSpec, TensorSpec, execute_and_compare, ratio_allclose
from tests.golden.fakes import FakeProgram, double, golden_double, specs

DOUBLE = FakeProgram(double, x="in", y="out")


def run(program: FakeProgram, specs: Any, golden: Any, **options: Any) -> RunResult:
    return execute_and_compare(program, specs, golden_fn=golden, **options)


def assert_fails(result: RunResult, name: str, *words: str) -> None:
    assert result.status == "FAIL" and not result.passed
    assert result.error is not None and all(word in result.error for word in (repr(name), *words)), (
        result.error
    )


def assert_shows_nothing(result: RunResult, *words: str) -> None:
    assert result.status == "SKIPPED" and not result.passed
    assert result.error is not None and all(word in result.error for word in words), result.error


def test_a_right_kernel_passes(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(DOUBLE, specs(), golden_double)
    assert result.passed and result.status == "PASS" and result.error is None
    out = capsys.readouterr().out
    assert "[RUN]   'y' PASS  shape=(8, 16) dtype=torch.float32 (allclose rtol=1e-05 atol=1e-05" in out
    assert out.splitlines()[-1] == f"[RUN] PASS ({result.execution_time:.2f}s)"
    stages = ["generate inputs", "compute golden", "runtime", "validate"]
    assert list(result.stage_times) == stages
    for stage in stages:
        assert f"[RUN] {stage} ...\n" in out and f"[RUN] {stage} done (0." in out


def test_a_wrong_element_fails_with_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    def kernel(x: Tensor, y: Tensor) -> None:
        double(x, y)
        y[3, 5] += 1.0

    result = run(FakeProgram(kernel, x="in", y="out"), specs(), golden_double)
    assert_fails(result, "y", "1 of 128 elements", "worst [3, 5]:")
    assert result.reports["y"].worst_index == (3, 5)
    assert result.reports["y"].max_error == pytest.approx(1.0, abs=1e-5)
    out = capsys.readouterr().out
    assert "[RUN]   'y' FAIL  shape=(8, 16)" in out
    assert not any(line.startswith(("[RUN] PASS", "[RUN] FAIL")) for line in out.splitlines())


@pytest.mark.parametrize(("atol", "passes"), [(0.5001, True), (0.4999, False)])
def test_tolerance_reaches_the_comparison(atol: float, passes: bool) -> None:
    def kernel(x: Tensor, y: Tensor) -> None:
        y[:] = 2 * x + 0.5

    result = run(FakeProgram(kernel, x="in", y="out"), specs(), golden_double, rtol=0.0, atol=atol)
    assert result.passed is passes


# --- outputs that nobody wrote


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int32, torch.int8, torch.bool])
def test_an_untouched_output_fails_even_where_the_golden_is_zero(dtype: torch.dtype) -> None:
    program = FakeProgram(lambda x, y: None, x="in", y="out")
    spec = [TensorSpec("x", [4], torch.float32), TensorSpec("y", [64], dtype, is_output=True)]
    result = run(program, spec, lambda t: t["y"].zero_())
    assert_fails(result, "y", "the kernel never wrote it")


@pytest.mark.parametrize("dtype", [torch.float32, torch.int32])
def test_half_written_output_fails(dtype: torch.dtype) -> None:
    def kernel(x: Tensor, y: Tensor) -> None:
        y[:, :8] = x[:, :8]  # half of the heads

    def golden(t: dict[str, Any]) -> None:
        t["y"][:, :8] = t["x"][:, :8]  # the same mistake: the rest is zero on both sides

    spec = [
        TensorSpec("x", (8, 16), dtype, init_value=lambda: torch.arange(128).reshape(8, 16)),
        TensorSpec("y", (8, 16), dtype, is_output=True),
    ]
    result = run(FakeProgram(kernel, x="in", y="out"), spec, golden)
    assert_fails(result, "y", "64 of 128 elements (50.000%) were never written, the first at [0, 8]")


def test_nan_is_named() -> None:
    def kernel(x: Tensor, y: Tensor) -> None:
        y[:] = 2 * x
        y[2, 1] = (x[2, 1] - x[2, 1]) / 0.0

    result = run(FakeProgram(kernel, x="in", y="out"), specs(), golden_double)
    assert_fails(result, "y", "NaN: 1 in actual, 0 in expected", "worst [2, 1]")


def test_an_output_that_the_kernel_only_reads_is_refused() -> None:
    result = run(FakeProgram(double, x="in", y="in"), specs(), golden_double)
    assert_fails(result, "y", "annotate it pl.Out[...] or pl.InOut[...]")


# --- comparisons that cannot fail


def test_zero_against_zero_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    spec = [TensorSpec("x", (8, 16), torch.float32), TensorSpec("y", (8, 16), torch.float32, is_output=True)]
    result = run(DOUBLE, spec, golden_double)
    assert_shows_nothing(result, "'y'", "the golden is zero everywhere")
    assert result.reports["y"].status == "SKIPPED"
    assert "PASS" not in capsys.readouterr().out


def test_a_constant_shows_nothing() -> None:
    spec = specs()
    spec[0] = TensorSpec("x", (8, 16), torch.float32, init_value=1.5)
    assert_shows_nothing(run(DOUBLE, spec, golden_double), "the golden is 3.0 everywhere")


def test_one_element_is_no_constant() -> None:
    assert run(DOUBLE, specs((1, 1)), golden_double).passed


def test_a_tolerance_that_accepts_zeros_shows_nothing() -> None:
    result = run(DOUBLE, specs(), golden_double, atol=100.0)
    assert_shows_nothing(result, "atol=100 accepts all zeros", "a kernel that does nothing would pass")


def test_a_comparator_that_accepts_anything_shows_nothing() -> None:
    result = run(DOUBLE, specs(), golden_double, compare_fn=lambda actual, expected, **_: (True, ""))
    assert_shows_nothing(result, "accepts all zeros")


def test_an_empty_tensor_shows_nothing() -> None:
    assert_shows_nothing(run(DOUBLE, specs((0, 4)), golden_double), "it has no elements")


def test_no_golden_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    result = run(DOUBLE, specs(), None)
    assert_shows_nothing(result, "validation skipped: no golden_fn or golden_data")
    assert "validation skipped: no golden_fn or golden_data)" in capsys.readouterr().out.splitlines()[-1]


def test_without_golden_an_untouched_output_still_fails() -> None:
    result = run(FakeProgram(lambda x, y: None, x="in", y="out"), specs(), None)
    assert_fails(result, "y", "the kernel never wrote it")


def test_a_golden_that_writes_nothing_is_an_error() -> None:
    def golden(t: dict[str, Any]) -> None:
        y = t["x"] * 2
        del y

    assert_fails(run(DOUBLE, specs(), golden), "y", "golden_fn wrote none of ['y']", "[:] = ...")


def test_a_golden_that_forgets_one_output() -> None:
    def kernel(x: Tensor, y: Tensor, z: Tensor) -> None:
        y[:], z[:] = 2 * x, 0.0

    program = FakeProgram(kernel, x="in", y="out", z="out")
    spec = [*specs(), TensorSpec("z", (8, 16), torch.float32, is_output=True)]
    result = run(program, spec, golden_double)
    assert_shows_nothing(result, "'z': golden_fn never wrote it")
    assert result.reports["y"].status == "PASS"


def test_a_kernel_without_effects_shows_nothing() -> None:
    program = FakeProgram(lambda x: None, x="in")
    assert_shows_nothing(run(program, specs()[:1], lambda t: None), "writes none of its parameters")


def test_one_written_row_of_a_cache_must_be_seen() -> None:
    """A ratio comparator would let the whole cache update go missing."""

    def kernel(cache: Tensor, row: Tensor) -> None:
        cache[7] = row

    def golden(t: dict[str, Any]) -> None:
        t["cache"][7] = t["row"]

    program = FakeProgram(kernel, cache="inout", row="in")
    spec = [
        TensorSpec("cache", (1000, 8), torch.float32, init_value=torch.randn),
        TensorSpec("row", (8,), torch.float32, init_value=torch.randn),
    ]
    assert run(program, spec, golden).passed
    result = run(program, spec, golden, compare_fn=ratio_allclose(1e-3, 1e-3))
    assert_shows_nothing(result, "'cache'", "accepts its initial value")


# --- tensors that must not change


def test_a_changed_input_fails() -> None:
    def kernel(x: Tensor, y: Tensor) -> None:
        double(x, y)
        x[0, 0] += 1.0

    result = run(FakeProgram(kernel, x="in", y="out"), specs(), golden_double)
    assert_fails(result, "x", "the kernel changed it, though it only reads this parameter")
    assert result.reports["y"].status == "PASS"


def test_a_golden_that_changes_an_input_is_an_error() -> None:
    def golden(t: dict[str, Any]) -> None:
        t["x"].mul_(2)
        t["y"][:] = t["x"]

    result = run(FakeProgram(double, x="in", y="out"), specs(), golden)
    assert_fails(result, "x", "golden_fn changed 'x', which the kernel only reads: work on a clone")


def test_an_undeclared_effect_is_compared() -> None:
    """The kernel writes a cache that is annotated as an input; the golden leaves it alone."""

    def kernel(x: Tensor, y: Tensor, cache: Tensor) -> None:
        double(x, y)
        cache[2] = x[0]

    program = FakeProgram(kernel, x="in", y="out", cache="in", written={"y", "cache"})
    spec = [*specs(), TensorSpec("cache", (4, 16), torch.float32, init_value=torch.randn)]
    result = run(program, spec, golden_double)
    assert_fails(result, "cache", "16 of 64 elements", "[2, 0]:")

    def golden(t: dict[str, Any]) -> None:
        golden_double(t)
        t["cache"][2] = t["x"][0]

    assert run(program, spec, golden).passed


def test_a_possible_effect_may_stay_away() -> None:
    program = FakeProgram(lambda x, y, c: double(x, y), x="in", y="out", c="in", written={"y", "c"})
    spec = [*specs(), TensorSpec("c", (4,), torch.float32, init_value=torch.randn)]
    result = run(program, spec, golden_double)
    assert result.passed and result.reports["c"].status == "PASS"


def test_a_declared_effect_may_not() -> None:
    program = FakeProgram(lambda x, y, c: double(x, y), x="in", y="out", c="inout")
    spec = [*specs(), TensorSpec("c", (4,), torch.float32, init_value=torch.randn)]
    assert_shows_nothing(run(program, spec, golden_double), "'c': golden_fn never wrote it")


def test_both_sides_start_from_the_same_inout_value() -> None:
    def step(x: Tensor, state: Tensor) -> None:
        state.mul_(0.5).add_(x)

    mine = torch.randn(8, 16)
    kept = mine.clone()
    spec = [
        TensorSpec("x", (8, 16), torch.float32, init_value=torch.randn),
        TensorSpec("state", (8, 16), torch.float32, init_value=mine, is_output=True),
    ]
    result = run(FakeProgram(step, x="in", state="inout"), spec, lambda t: step(t["x"], t["state"]))
    assert result.passed
    assert torch.equal(mine, kept)  # the caller's tensor is a value, not an argument


def test_read_only_tensors_are_not_copied() -> None:
    mine = torch.randn(8, 16)
    seen: list[int] = []

    def kernel(x: Tensor, y: Tensor) -> None:
        seen.append(x.data_ptr())
        double(x, y)

    def golden(t: dict[str, Any]) -> None:
        seen.append(t["x"].data_ptr())
        golden_double(t)

    spec = [TensorSpec("x", (8, 16), torch.float32, init_value=mine), specs()[1]]
    assert run(FakeProgram(kernel, x="in", y="out"), spec, golden).passed
    assert seen == [mine.data_ptr()] * 2


# --- aliasing


def test_undeclared_aliasing_is_refused() -> None:
    memory = torch.randn(200)
    spec = [
        TensorSpec("x", (100,), torch.float32, init_value=memory[:100]),
        TensorSpec("y", (100,), torch.float32, init_value=memory[50:150], is_output=True),
    ]
    result = run(FakeProgram(double, x="in", y="inout"), spec, golden_double)
    assert_fails(result, "x", "'y'", "share memory", "alias_of")


def test_declared_aliasing_is_real_on_both_sides() -> None:
    spec = [
        TensorSpec("x", (8, 16), torch.float32, init_value=torch.randn),
        TensorSpec("y", (8, 16), torch.float32, is_output=True, alias_of="x"),
    ]
    assert run(FakeProgram(double, x="in", y="out"), spec, golden_double).passed

    def through_a_copy(t: dict[str, Any]) -> None:
        t["y"] = 2 * t["x"]

    assert_fails(run(FakeProgram(double, x="in", y="out"), spec, through_a_copy), "x", "128 of 128")


def test_bad_alias() -> None:
    spec = [specs()[0], TensorSpec("y", (8, 16), torch.float32, is_output=True, alias_of="z")]
    assert_fails(run(DOUBLE, spec, golden_double), "z", "names no earlier tensor")
    spec = [specs()[0], TensorSpec("y", (8, 8), torch.float32, is_output=True, alias_of="x")]
    assert_fails(run(DOUBLE, spec, golden_double), "x", "[8, 16], this one torch.float32 [8, 8]")


# --- the call


def test_scalars_reach_both_sides_as_numbers() -> None:
    def kernel(x: Tensor, factor: float, y: Tensor) -> None:
        assert type(factor) is float
        y[:] = x * factor

    def golden(t: dict[str, Any]) -> None:
        assert type(t["factor"]) is float
        t["y"][:] = t["x"] * t["factor"]

    spec = [specs()[0], ScalarSpec("factor", torch.float16, 0.1), specs()[1]]
    assert run(FakeProgram(kernel, x="in", factor="scalar", y="out"), spec, golden).passed


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (specs()[:1], "1 specs ['x'] for 2 parameters ['x', 'y']"),
        (specs()[::-1], "not in the order of the parameters ['x', 'y']"),
        ([specs()[0], specs()[0]], "spec names repeat: 'x'"),
        ([specs()[0], ScalarSpec("y", torch.int32, 1)], "spec 'y' is a scalar, parameter 'y' is a tensor"),
        (
            [TensorSpec("x", (2,), torch.float32, init_value=torch.zeros(3)), specs()[1]],
            "init_value has shape [3]",
        ),
    ],
)
def test_bad_specs_are_a_result(spec: Any, words: str) -> None:
    result = run(DOUBLE, spec, golden_double)
    assert result.status == "FAIL" and result.error is not None and words in result.error


def test_golden_results_of_another_type_fail_by_name() -> None:
    def wrong_shape(t: dict[str, Any]) -> None:
        t["y"] = torch.zeros(16, 8)

    def wrong_dtype(t: dict[str, Any]) -> None:
        t["y"] = t["x"].double() * 2

    assert_fails(run(DOUBLE, specs(), wrong_shape), "y", "shape mismatch: actual [8, 16], expected [16, 8]")
    assert_fails(run(DOUBLE, specs(), wrong_dtype), "y", "dtype mismatch: actual torch.float32")


def test_a_golden_may_rebind_or_write_through_numpy() -> None:
    def rebind(t: dict[str, Any]) -> None:
        t["y"] = 2 * t["x"]

    def numpy(t: dict[str, Any]) -> None:
        t["y"].numpy()[:] = 2 * t["x"].numpy()

    assert run(DOUBLE, specs(), rebind).passed
    assert run(DOUBLE, specs(), numpy).passed

    def no_tensor(t: dict[str, Any]) -> None:
        t["y"] = 2.0

    with pytest.raises(TypeError, match="golden_fn left a float in place of the tensor 'y'"):
        run(DOUBLE, specs(), no_tensor)


def test_compare_fn_by_name() -> None:
    seen: dict[str, Any] = {}

    def only_signs(actual: Tensor, expected: Tensor, **context: Any) -> tuple[bool, str]:
        seen.update(context)
        return torch.equal(actual.sign(), expected.sign()), "a sign differs"

    program = FakeProgram(lambda x, y: y.copy_(x.sign()), x="in", y="out")
    assert not run(program, specs(), golden_double).passed
    result = run(program, specs(), golden_double, compare_fn={"y": only_signs}, rtol=0.25, atol=0.5)
    assert result.passed and result.reports["y"].rule == "only_signs"
    assert set(seen) == {"actual_outputs", "expected_outputs", "inputs", "rtol", "atol"}
    assert (seen["rtol"], seen["atol"], list(seen["inputs"])) == (0.25, 0.5, ["x"])
    assert torch.equal(seen["expected_outputs"]["y"], seen["inputs"]["x"] * 2)

    result = run(program, specs(), golden_double, compare_fn={"Y": only_signs})
    assert_fails(result, "Y", "the kernel may change only ['y']")


def test_an_assertion_of_a_comparator_is_its_verdict() -> None:
    def comparator(actual: Tensor, expected: Tensor, **_: Any) -> tuple[bool, str]:
        raise AssertionError("not today")

    assert_fails(run(DOUBLE, specs(), golden_double, compare_fn=comparator), "y", "not today")


def test_a_kernels_exception_passes_through() -> None:
    def kernel(x: Tensor, y: Tensor) -> None:
        raise IndexError("block 3 reads row 9 of 8")

    with pytest.raises(IndexError, match="block 3 reads row 9 of 8"):
        run(FakeProgram(kernel, x="in", y="out"), specs(), golden_double)


def test_runs_repeat_bit_for_bit() -> None:
    seen: list[Tensor] = []

    def kernel(x: Tensor, y: Tensor) -> None:
        seen.append(x.clone())
        double(x, y)

    for seed in (0, 0, 1):
        assert run(FakeProgram(kernel, x="in", y="out"), specs(), golden_double, seed=seed).passed
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_progress_is_printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 3))
    monkeypatch.setattr("golden.report.time.perf_counter", lambda: float(next(clock)))

    class Slow(FakeProgram):
        def __call__(self, *args: Any, progress: Any = None) -> None:
            for done in range(4):
                progress(done, 4, f"region_{done}")
            self.body(*args)

    assert run(Slow(double, x="in", y="out"), specs(), golden_double).passed
    lines = [line for line in capsys.readouterr().out.splitlines() if "region_" in line]
    assert 0 < len(lines) < 4 and lines[0] == "[RUN]   1/4 region_1"


# --- recorded runs


def test_a_recorded_run_replays(tmp_path: Path) -> None:
    spec = [specs()[0], ScalarSpec("n", torch.int32, 3), specs()[1]]
    program = FakeProgram(lambda x, n, y: y.copy_(x * n), x="in", n="scalar", y="out")

    def golden(t: dict[str, Any]) -> None:
        t["y"][:] = t["x"] * t["n"]

    assert run(program, spec, golden, work_dir=tmp_path, save_data=True, seed=4).passed
    data = tmp_path / "data"
    x = torch.load(data / "in" / "x.pt", weights_only=True)
    assert torch.equal(torch.load(data / "out" / "y.pt", weights_only=True), 3 * x)
    assert torch.equal(torch.load(data / "actual" / "y.pt", weights_only=True), 3 * x)

    assert run(program, spec, None, golden_data=data, seed=99).passed
    wrong = FakeProgram(lambda x, n, y: y.copy_(x * n + 1), x="in", n="scalar", y="out")
    assert_fails(run(wrong, spec, None, golden_data=data), "y", "128 of 128")

    other = [spec[0], ScalarSpec("n", torch.int32, 4), spec[2]]
    result = run(program, other, None, golden_data=data)
    assert result.status == "FAIL" and "the spec says 4" in str(result.error)
    (data / "out" / "y.pt").unlink()
    result = run(program, spec, None, golden_data=data)
    assert result.status == "FAIL" and f"missing {data / 'out' / 'y.pt'}" in str(result.error)


def test_a_recorded_tensor_of_another_type_is_refused(tmp_path: Path) -> None:
    assert run(DOUBLE, specs(), golden_double, work_dir=tmp_path, save_data=True).passed
    result = run(DOUBLE, specs((8, 8)), None, golden_data=tmp_path / "data")
    assert result.status == "FAIL"
    assert "x.pt holds torch.float32 [8, 16], the spec says torch.float32 [8, 8]" in str(result.error)


def test_a_saved_view_does_not_drag_its_memory_along(tmp_path: Path) -> None:
    spec = [TensorSpec("x", (8,), torch.float32, init_value=torch.randn(100_000)[16:24]), specs((8,))[1]]
    assert run(DOUBLE, spec, golden_double, work_dir=tmp_path, save_data=True).passed
    assert (tmp_path / "data" / "in" / "x.pt").stat().st_size < 10_000
