"""docs/performance.md states the estimates of today, and their error against times measured on one H200."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pypto_models.compile import lower_for
from pypto_models.cost import estimate
from pypto_models.kernel_file import KernelFile
from pypto_models.target import load_target

REPO = Path(__file__).parent.parent.parent
PAGE = (REPO / "docs" / "performance.md").read_text()
H200 = load_target("h200")

# K, N, tiles of 32 KiB; microseconds measured: read only, cuBLAS, best prototype
MEASURED = {
    "qkv": (5120, 7168, 2240, 18.5, 20.8, 18.3),
    "o": (5120, 5120, 1600, 13.8, 15.7, 13.6),
    "gate_up": (5120, 34816, 10880, 79.2, 86.3, 84.5),
    "down": (17408, 5120, 5440, 40.9, 50.8, 43.5),
}


def microseconds(path: Path, name: str, target: str, given: dict[str, Any], **constants: int) -> float:
    file = KernelFile.load(path)
    kernel, on = file.entry(name), load_target(target)
    compiled = lower_for(kernel, (), on, file.constants(kernel, target, constants))
    return estimate(compiled.graph, on, file.arguments(target, given)).summary.seconds * 1e6


def row(start: str) -> list[str]:
    line = next(x for x in PAGE.splitlines() if x.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def error(estimated: float, measured: float) -> str:
    return f"{100 * (estimated / measured - 1):+.0f} %"


@pytest.mark.parametrize("shape", MEASURED)
def test_the_table_of_products(shape: str) -> None:
    k, n, tiles, read, cublas, prototype = MEASURED[shape]
    file = REPO / "docs" / "snippets" / "skinny_gemm.py"
    stream = microseconds(file, "read_only", "h200", {}, TILES=tiles)
    product = microseconds(file, "skinny_gemm", "h200", {}, K=k, N=n)
    assert row(f"{shape} {k}, {n}") == [
        f"{shape} {k}, {n}", f"{read}", f"{stream:.1f}", error(stream, read), f"{cublas}", f"{prototype}",
        f"{product:.1f}", error(product, cublas), error(product, prototype),
    ]  # fmt: skip
    assert abs(stream / read - 1) < 0.02 and abs(product / prototype - 1) < 0.2


@pytest.mark.parametrize(("batch", "floor", "best"), [(1, 146.8, 197.2), (16, 201.4, 258.4)])
def test_the_table_of_layers(batch: int, floor: float, best: float) -> None:
    file = REPO / "models" / "qwen3_14b" / "decode_layer.py"
    found = microseconds(file, "decode_layer", "h200", {"BATCH": batch})
    assert row(f"batch {batch} ") == [
        f"batch {batch}", f"{floor}", f"{best}", f"{found:.1f}", error(found, best)
    ]  # fmt: skip
    assert found > floor


def test_the_row_of_bytes_in_flight() -> None:
    file = REPO / "docs" / "snippets" / "skinny_gemm.py"
    shares = []
    for rows in (8, 12, 16, 24):
        tiles = 20160 * 16 // rows
        read = H200.figures.read_bytes_per_s
        assert read is not None
        floor = tiles * rows * 2048 / read * 1e6
        shares.append(floor / microseconds(file, "read_only", "h200", {}, TILES=tiles, ROWS=rows))
    stated = [int(x) / 100 for x in re.findall(r"(\d+) %", " ".join(row("estimate (`--set TILES=")[1:]))]
    assert stated == pytest.approx(shares, abs=0.006)


def test_the_figures_for_gb10() -> None:
    stream = microseconds(
        REPO / "docs" / "snippets" / "skinny_gemm.py", "read_only", "gb10", {}, TILES=10880, CORES=48
    )
    assert f"the `gate_up` read: {stream:.1f} us" in PAGE
