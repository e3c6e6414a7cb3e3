"""The compile cache: one build for equal programs, another for everything that differs, never a false hit."""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

import backends
import pypto_models.language as pl
from backends.cute import CuteBackend
from backends.sim import SimBackend
from pypto_models import cache, compile
from pypto_models.cache import Key, MemoryStore, NoStableText, make_key, stable_text, tool_versions
from pypto_models.compile import PROGRAMS, compile_function, program_key
from pypto_models.errors import UserError
from pypto_models.ir.expr import Const, Var
from pypto_models.ir.nodes import Function, Let
from pypto_models.ir.rewrite import rewrite_regions
from pypto_models.ir.types import FP32, INDEX, ScalarType
from pypto_models.ops import REGISTRY
from pypto_models.target import Target, load_target, parse_target

ROWS = 32
FACTOR = 2.0


@pl.jit
def scale(x: pl.Tensor[[ROWS, 64], pl.FP32], y: pl.Out[pl.Tensor[[ROWS, 64], pl.FP32]]):
    for b in pl.spmd(ROWS // 16, name_hint="scale"):
        y[b * 16 : b * 16 + 16, :] = pl.mul(x[b * 16 : b * 16 + 16, :], FACTOR)


@pl.jit
def shapeless(x: pl.Tensor, y: pl.Out[pl.Tensor]):
    with pl.at(level=pl.Level.CORE_GROUP):
        y[:, :] = pl.add(x, 1.0)


def twins() -> tuple[pl.Kernel, pl.Kernel]:
    """One text on two lines."""

    @pl.jit
    def twin(x: pl.InOut[pl.Tensor[[16, 64], pl.FP32]]):
        with pl.at(level=pl.Level.CORE_GROUP):
            x[:, :] = pl.add(x, 1.0)

    first = twin

    @pl.jit
    def twin(x: pl.InOut[pl.Tensor[[16, 64], pl.FP32]]):  # noqa: F811
        with pl.at(level=pl.Level.CORE_GROUP):
            x[:, :] = pl.add(x, 1.0)

    return first, twin


def lowered(kernel: pl.Kernel = scale, **constants: Any) -> Function:
    return pl.lower(kernel, constants=constants)


def key(
    function: Function | None = None, target: Target | None = None, check: bool = False, **options: Any
) -> Key:
    function = lowered() if function is None else function
    return program_key(function, target or load_target("a2a3"), SimBackend(), options, check)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that the backend builds."""
    seen: list[str] = []
    build = SimBackend.build

    def counted(self: SimBackend, compiled: Any, *args: Any, **options: Any) -> Any:
        seen.append(compiled.name)
        return build(self, compiled, *args, **options)

    monkeypatch.setattr(SimBackend, "build", counted)
    return seen


# ------------------------------------------------------------------------------------------ hits
def test_forty_equal_layers_are_built_once(builds: list[str]) -> None:
    layers = [compile(scale, constants={"FACTOR": 3.0}) for _ in range(40)]
    assert builds == ["scale"]
    assert len({id(layer.executable) for layer in layers}) == 1
    assert (PROGRAMS.counts.builds, PROGRAMS.counts.hits) == (1, 39)
    for i, layer in enumerate(layers[:3]):  # each computes on its own arguments
        x, y = torch.full((32, 64), float(i)), torch.empty(32, 64)
        layer(x, y)
        assert torch.equal(y, x * 3)


def test_calling_a_kernel_again_builds_nothing(builds: list[str]) -> None:
    for _ in range(3):
        x, y = torch.randn(32, 64), torch.empty(32, 64)
        scale(x, y)
        assert torch.equal(y, x * 2)
    assert builds == ["scale"]


def test_threads_that_ask_at_once_share_one_build(builds: list[str]) -> None:
    threads = [threading.Thread(target=compile, args=(scale,)) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert builds == ["scale"]


def test_threads_may_run_one_program_at_once() -> None:
    """Executables are shared: whatever changes during a run belongs to the run."""
    program = compile(scale, backend_options={"schedule": "random", "seed": 1})
    given = [torch.full((32, 64), float(i)) for i in range(6)]
    made = [torch.empty(32, 64) for _ in given]

    def run(i: int) -> None:
        for _ in range(20):
            program(given[i], made[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(given))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(torch.equal(y, x * 2) for x, y in zip(given, made, strict=True))


def test_the_key_is_the_same_in_another_process() -> None:
    """Ids that count up, hash seeds and addresses are not in it: a store on disk could use it."""
    code = "from tests.test_cache import key; print(dict(key().parts))"
    seen = [
        ast.literal_eval(
            subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=True,
                cwd=Path(__file__).parents[1], env={"PYTHONHASHSEED": seed, "PATH": ""},
            ).stdout
        )
        for seed in ("1", "2")
    ]  # fmt: skip
    parts = dict(key().parts)
    assert parts.keys() == {"backend", "check", "function", "options", "schedules", "target", "tools"}
    for found in seen:  # "tools" differs if someone edits a source file right now, as it should
        assert {**found, "tools": ""} == {**parts, "tools": ""}


# ------------------------------------------------------------------------------------------ misses
def changed_target() -> Target:
    file = Path(cache.__file__).parent / "targets" / "a2a3.yaml"
    text = file.read_text()
    assert text.count("orders: [RAW, WAW]") == 1
    return parse_target(text.replace("orders: [RAW, WAW]", "orders: [RAW, WAW, WAR]"), str(file))


def with_dtype() -> Function:
    """The same text but for one type that the printer infers instead of printing it."""
    function = lowered()

    def swap(region: Any) -> Any:
        first = region.body[0]
        assert isinstance(first, Let)
        v = first.result
        other = replace(v, type=v.type.with_(valid=(8, 64)))  # type: ignore[union-attr]
        return replace(region, body=(replace(first, results=(other,)), *region.body[1:]))

    return replace(function, body=rewrite_regions(function.body, swap))


CHANGES = [
    ("a constant", lambda: key(lowered(FACTOR=2.5)), ("function",)),
    ("a constant that is an extent", lambda: key(lowered(ROWS=48)), ("function",)),
    ("a type", lambda: key(with_dtype()), ("function",)),
    ("a value of the target file", lambda: key(target=changed_target()), ("target",)),
    ("another target", lambda: key(target=load_target("a5")), ("target",)),
    ("an option", lambda: key(schedule="random"), ("options",)),
    ("the value of an option", lambda: key(schedule="random", seed=3), ("options",)),
    ("the checks", lambda: key(check=True), ("check",)),
]


@pytest.mark.parametrize(("change", "parts"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_what_differs_has_another_key(change: Any, parts: tuple[str, ...]) -> None:
    assert key().differs(change()) == parts
    assert key().digest != change().digest


@pytest.mark.parametrize("tool", ["python", "torch", "pypto_models", "backend", "machine"])
def test_another_version_of_a_tool_has_another_key(tool: str) -> None:
    tools = tool_versions(SimBackend())
    assert make_key(tools=tools) != make_key(tools=tools | {tool: f"{tools[tool]}+1"})


def test_another_version_of_torch_is_built_again(builds: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    compile(scale)
    monkeypatch.setattr(torch, "__version__", "99.0")
    compile(scale)
    assert builds == ["scale", "scale"]


def test_an_edited_source_file_has_another_digest(tmp_path: Path) -> None:
    for name, text in (("a", "x = 1"), ("b", "x = 2"), ("c", "x = 1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pass.py").write_text(text)
    a, b, c = (cache.sources(tmp_path / name) for name in "abc")
    assert a == c != b
    for name, text in (("d", "x = 1"), ("e", "x = 2")):  # of whatever kind, and below
        (tmp_path / name / "device").mkdir(parents=True)
        (tmp_path / name / "device" / "stream.cuh").write_text(text)
    assert cache.sources(tmp_path / "d") != cache.sources(tmp_path / "e")
    with pytest.raises(NoStableText, match="holds no source"):
        cache.sources(tmp_path / "a" / "none")


def test_the_sources_of_a_backend_are_its_own_and_those_that_it_shares() -> None:
    root = Path(backends.__file__).parent
    for backend, folders in ((CuteBackend(), {"cute", "gpu"}), (SimBackend(), {"sim"})):
        found = tool_versions(backend)["backend"].split()[1:]
        assert {*found} == {cache.sources(root / folder) for folder in folders}


def test_changes_are_built_again(builds: list[str]) -> None:
    x, y = torch.ones(32, 64), torch.empty(32, 64)
    for factor in (2.0, 3.0, 2.0):
        compile(scale, constants={"FACTOR": factor})(x, y)
        assert torch.equal(y, x * factor)
    compile(scale, platform="a5sim")
    compile(scale, backend_options={"schedule": "random", "seed": 1})
    assert len(builds) == 4


def test_shapes_of_the_arguments_are_part_of_the_function(builds: list[str]) -> None:
    for rows in (16, 32, 16):
        x, y = torch.randn(rows, 64), torch.empty(rows, 64)
        compile(shapeless, x, y)(x, y)
        assert torch.equal(y, x + 1)
    assert len(builds) == 2


def test_errors_name_the_lines_of_the_kernel_that_was_asked_for() -> None:
    """The same text at two places: a program of the other would name the wrong line."""
    lines = []
    for kernel in twins():
        with pytest.raises(UserError, match="missing|axis|expected") as error:
            compile(kernel)(torch.zeros(8, 64))
        lines.append(error.value.span.line)
    assert lines[1] - lines[0] == 7


# ------------------------------------------------------------------------------------------ failing closed
def test_values_of_different_types_have_different_texts() -> None:
    values = [
        1,
        1.0,
        True,
        "1",
        (1,),
        [1],
        None,
        {1},
        {"1": 1},
        {1: 1},
        0.0,
        -0.0,
        FP32,
        Const(1),
        Const(1, FP32),
    ]
    texts = [stable_text(v) for v in values]
    assert len(set(texts)) == len(values)
    assert stable_text({"a": 1, "b": 2}) == stable_text(MappingProxyType({"b": 2, "a": 1}))
    assert stable_text("a,b") != stable_text(("a", "b"))


def test_variables_are_numbered_in_order() -> None:
    a, b, c = (Var(n, ScalarType(INDEX)) for n in "xxx")
    assert stable_text((a, b)) == stable_text((b, c))
    assert stable_text((a, b)) != stable_text((a, a))


@dataclass(frozen=True)
class Foreign:
    x: int = 0


class Number(int):
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (lambda: None, "function has no stable text"),
        (object(), "object has no stable text"),
        (torch.zeros(1), "Tensor has no stable text"),
        (Number(3), "Number has no stable text"),
        (torch.Size([3]), "Size is a subclass of a sequence"),
        (Foreign(), "Foreign is not one of pypto_models"),
        (replace(REGISTRY["add"], doc=""), "the op 'add' is not the registry's"),
    ],
    ids=["function", "object", "tensor", "subclass", "sequence", "dataclass", "op"],
)
def test_a_value_without_a_stable_text_is_refused(value: Any, message: str) -> None:
    with pytest.raises(NoStableText, match=message):
        stable_text((1, value))
    with pytest.raises(NoStableText, match=f"^options: .*{message}"):
        make_key(options={"x": value}, target=1)


def test_what_has_no_key_is_built_each_time_and_says_so(builds: list[str]) -> None:
    """An op that only looks like the registry's: planted, it never meets the program of the other."""
    function = lowered()
    compile_function(function)
    other = replace(REGISTRY["mul"], doc="")
    calls = [s for r in function.body for s in r.body if isinstance(s, Let) and s.op is REGISTRY["mul"]]  # type: ignore[union-attr]
    (call,) = calls

    def swap(region: Any) -> Any:
        return replace(region, body=tuple(replace(s, op=other) if s is call else s for s in region.body))

    changed = replace(function, body=rewrite_regions(function.body, swap))
    for _ in range(2):
        (warning,) = compile_function(changed).warnings
        assert warning == "compiled without the cache: function: the op 'mul' is not the registry's"
    assert len(builds) == 3
    assert len(PROGRAMS) == 1


def test_a_backend_with_state_of_its_own_has_no_key() -> None:
    backend = SimBackend()
    backend.fast = True  # type: ignore[attr-defined]
    with pytest.raises(NoStableText, match="the backend SimBackend has state of its own"):
        program_key(lowered(), load_target("a2a3"), backend, {})


# ------------------------------------------------------------------------------------------ the store
def numbered(n: int) -> Key:
    return make_key(n=n)


def test_the_store_keeps_what_was_used_last() -> None:
    store: MemoryStore[int] = MemoryStore(capacity=2)
    for n in (1, 2, 1, 3):
        assert store.get_or_build(numbered(n), lambda n=n: n) == n
    assert (store.counts.hits, store.counts.builds, len(store)) == (1, 3, 2)
    assert store.get_or_build(numbered(1), lambda: 0) == 1
    assert store.get_or_build(numbered(2), lambda: 20) == 20  # 2 had to go
    store.clear()
    assert (len(store), store.counts.builds) == (0, 0)
    with pytest.raises(ValueError, match="capacity is 0"):
        MemoryStore(0)


def test_a_build_that_fails_leaves_nothing_behind() -> None:
    store: MemoryStore[int] = MemoryStore()

    def fail() -> int:
        raise RuntimeError("no")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="no"):
            store.get_or_build(numbered(1), fail)
    assert store.get_or_build(numbered(1), lambda: 5) == 5


def test_builds_of_different_keys_run_side_by_side() -> None:
    store: MemoryStore[int] = MemoryStore()
    meet = threading.Barrier(2, timeout=10)  # breaks if one build waits for the other

    def build(n: int) -> int:
        meet.wait()
        return n

    threads = [
        threading.Thread(target=store.get_or_build, args=(numbered(n), lambda n=n: build(n))) for n in (1, 2)
    ]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert store.counts.builds == 2
