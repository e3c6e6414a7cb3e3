"""Platforms: what names mean, with a table in which GPUs of two vendors have two native backends."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import pypto_models.language as pl
from models.qwen3_14b import constants as dense
from models.qwen3_14b.harness import LAYER
from pypto_models import UserError, cli, compile
from pypto_models.backend import Compiled, Progress
from pypto_models.compile import (
    backend_table,
    default_backend,
    platform_name,
    platforms,
    resolve_platform,
    schedule_overrides,
    tiling_name,
)
from pypto_models.target import Target, load_target

GEMM = Path(__file__).parents[1] / "examples" / "gemm.py"


@pl.jit
def twice(x: pl.Tensor[[16, 64], pl.FP32], y: pl.Out[pl.Tensor[[16, 64], pl.FP32]]):
    with pl.at(level=pl.Level.CORE_GROUP):
        y[:, :] = pl.mul(x, 2.0)


@dataclass(frozen=True)
class StandIn:
    """A backend of GPUs whose names of architectures begin with one of ``archs``; it computes nothing."""

    name: str
    archs: tuple[str, ...]
    native: bool = True

    def covers(self, target: Target) -> str | None:
        return None if (target.arch or "").startswith(self.archs) else f"it is for {' and '.join(self.archs)}"

    def unusable(self) -> str | None:
        return None

    def build(self, compiled: Compiled) -> Built:
        return Built(f"{self.name} for {compiled.target.name}")

    def emit(self, compiled: Compiled) -> str:
        return json.dumps({name: dict(o.values) for name, o in compiled.overrides.items()})


@dataclass(frozen=True)
class Built:
    made: str

    def __call__(self, args: Mapping[str, Any], progress: Progress | None = None) -> str:
        return self.made


FIRST, SECOND = StandIn("first", ("sm_",)), StandIn("second", ("sm_", "gfx"))


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    backends = (backend_table()["sim"], FIRST, SECOND)
    monkeypatch.setattr("backends.BACKENDS", {b.name: b for b in backends})


pytestmark = pytest.mark.usefixtures("table")


def test_platforms() -> None:
    simulated = ["a2a3sim", "a5sim", "gb10sim", "h200sim", "mi300xsim", "mi355xsim"]
    named = ["gb10", "h200", "gb10:second", "h200:second", "mi300x", "mi355x"]
    assert platforms() == simulated + named
    for platform in platforms():
        assert platform_name(*resolve_platform(platform)) == platform


@pytest.mark.parametrize(
    ("platform", "target", "backend"),
    [
        ("h200", "h200", "first"),  # the first native backend of the table that covers it
        ("mi300x", "mi300x", "second"),
        ("h200:first", "h200", "first"),
        ("h200:second", "h200", "second"),
        ("h200second", "h200", "second"),
        ("h200sim", "h200", "sim"),
        ("mi355x:sim", "mi355x", "sim"),
        ("a5sim", "a5", "sim"),
    ],
)
def test_what_a_platform_means(platform: str, target: str, backend: str) -> None:
    found, by = resolve_platform(platform)
    assert (found.name, by.name) == (target, backend)
    assert resolve_platform(target, backend) == resolve_platform(platform, backend) == (found, by)


def test_the_order_of_the_table_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.BACKENDS", {b.name: b for b in (SECOND, FIRST)})
    assert default_backend(load_target("h200")) is SECOND
    assert platforms()[:4] == ["gb10", "h200", "mi300x", "mi355x"]
    assert platforms()[4:] == ["gb10:first", "h200:first"]
    assert default_backend(load_target("a2a3")) is None


@pytest.mark.parametrize(
    ("platform", "backend", "message"),
    [
        ("a2a3", None, r"unknown platform 'a2a3'\n  fix: known: a2a3sim"),
        ("sim", None, "unknown platform 'sim'"),
        ("a2a3cuda", None, "unknown platform 'a2a3cuda'"),
        ("", None, "unknown platform ''"),
        ("a3sim", None, r"unknown target 'a3'\n  fix: known: a2a3, a5"),
        ("h200:cuda", None, r"unknown backend 'cuda'\n  fix: known: sim, first, second"),
        ("h200:", None, "unknown backend ''"),
        ("h200", "cuda", "unknown backend 'cuda'"),
        ("mi300x:first", None, r"first does not cover mi300x: it is for sm_\n  fix: use mi300xsim, mi300x$"),
        ("a5", "second", r"backend second does not cover a5: it is for sm_ and gfx\n  fix: use a5sim$"),
        ("h200:first", "second", "'backend': it is second, and the platform h200:first says first"),
        ("h200sim", "first", "'backend': it is first, and the platform h200sim says sim"),
    ],
)  # fmt: skip
def test_what_is_no_platform(platform: str, backend: str | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        resolve_platform(platform, backend)


# ------------------------------------------------------------------------------------------ compile, commands
def test_compile_takes_a_platform_or_its_parts() -> None:
    x, y = torch.zeros(16, 64), torch.zeros(16, 64)
    assert compile(twice, platform="h200:second")(x, y) == "second for h200"
    assert compile(twice, target="h200", backend="second")(x, y) == "second for h200"
    assert compile(twice, target="h200")(x, y) == "first for h200"
    assert twice(x, y, config={"target": "mi355x"}) == "second for mi355x"
    compile(twice, target="a2a3", backend="sim")(x + 1, y)
    assert torch.equal(y, x + 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"platform": "h200", "target": "h200"}, "'target': platform='h200' is there too"),
        ({"platform": "h200", "backend": "first"}, "'backend': platform='h200' is there too"),
        ({"backend": "first"}, "'backend': there is no target with it"),
        ({"target": "h200sim"}, "unknown target 'h200sim'"),
    ],
)
def test_compile_is_told_one_thing(given: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        compile(twice, **given)


def emitted(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, int]]:
    assert cli.main(["emit", *arguments]) == 0
    found: dict[str, dict[str, int]] = json.loads(capsys.readouterr().out)
    return found


@pytest.fixture
def gemm(tmp_path: Path) -> Path:
    """A kernel beside tiling files for two backends of one target."""
    path = tmp_path / "gemm.py"
    path.write_text(GEMM.read_text())
    (tmp_path / "tiling").mkdir()
    (tmp_path / "tiling" / "h200.yaml").write_text("schedule:\n  gemm: {slots: 3}\n")
    (tmp_path / "tiling" / "h200.second.yaml").write_text("schedule:\n  gemm: {warps_k: 4}\n")
    return path


def test_schedules_are_those_of_the_backend(gemm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert emitted(capsys, str(gemm), "-p", "h200") == {"gemm": {"slots": 3}}
    assert emitted(capsys, str(gemm), "-p", "h200:second") == {"gemm": {"warps_k": 4}}
    assert emitted(capsys, str(gemm), "--target", "h200", "--backend", "second") == {"gemm": {"warps_k": 4}}
    (gemm.parent / "tiling" / "h200.second.yaml").unlink()
    assert emitted(capsys, str(gemm), "-p", "h200:second") == {}, "those of the other backend do not apply"
    assert emitted(capsys, str(gemm), "-p", "gb10") == emitted(capsys, str(gemm), "-p", "mi300x") == {}
    assert cli.main(["emit", str(gemm), "-p", "h200:first", "--backend", "second"]) == 2
    assert "it is second, and the platform h200:first says first" in capsys.readouterr().err


def test_compile_and_check_read_the_same_file(gemm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = load_target("h200")
    sim = backend_table()["sim"]
    assert [tiling_name(target, b) for b in (None, sim, FIRST, SECOND)] == ["h200"] * 3 + ["h200.second"]
    for backend, key in ((None, "slots"), (sim, "slots"), (FIRST, "slots"), (SECOND, "warps_k")):
        assert [o.values[0][0] for o in schedule_overrides(gemm, target, backend).values()] == [key]
    own = gemm.parent / "tiling" / "h200.second.yaml"
    own.write_text("schedule:\n  gem: {warps_k: 4}\n")
    for command in ("check", "memory"):
        assert cli.main([command, str(gemm), "-p", "h200"]) == 0
        assert cli.main([command, str(gemm), "-p", "h200:second"]) == (1 if command == "check" else 2)
        said = "".join(capsys.readouterr())
        assert "h200.second.yaml:2" in said and "no region is called 'gem'" in said
    own.rename(own.with_name("h200.first.yaml"))
    assert cli.main(["check", str(gemm), "-p", "h200"]) == 1
    said = capsys.readouterr().out
    assert "h200.first.yaml: no backend reads it for h200" in said
    assert "its tiling files are h200.yaml, h200.second.yaml" in said


def test_constants_of_a_model_are_those_of_the_backend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dense, "TILING", tmp_path)
    (tmp_path / "h200.yaml").write_text("source: {QKV_N: 64, OUT_N: 64}\n")
    (tmp_path / "h200.second.yaml").write_text("source: {QKV_N: 32}\n")
    for platform, width in (("h200", 64), ("h200sim", 64), ("h200:second", 32)):
        values = LAYER.compile_options(LAYER.configs["full"], platform, "skip")["constants"]
        assert (values["QKV_N"], values["OUT_N"]) == (width, 64)
    for platform in ("gb10:second", "mi300x"):  # the constants of the module
        assert "QKV_N" not in LAYER.compile_options(LAYER.configs["full"], platform, "skip")["constants"]
