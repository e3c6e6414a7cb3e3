"""Refresh the generated blocks of README.md and of pages in docs/: `python -m tools.pages [--check]`.

The pages are prose with blocks between `<!-- begin NAME -->` and `<!-- end NAME -->`.  This tool
writes the blocks from what the compiler prints and what the snippets in docs/snippets/ do, so that no page
goes stale.
"""

from __future__ import annotations

import argparse
import inspect
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

from models.common import attention, projection
from models.qwen3_14b.config import FULL
from models.qwen3_14b.constants import constants
from models.qwen3_14b.decode_layer import decode_layer
from pypto_models.backend import Supports
from pypto_models.compile import Compiled, backend_table, lower_for
from pypto_models.docs import FAMILIES
from pypto_models.ir.nodes import Function, Region
from pypto_models.ir.printer import format_stmt
from pypto_models.ir.rewrite import walk
from pypto_models.passes.plan_memory import RegionPlan
from pypto_models.target import load_target

ROOT = Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "architecture.md", ROOT / "docs" / "backends.md")
SNIPPETS = ROOT / "docs" / "snippets"
TARGET, GPU = "a2a3", "h200"
BLOCK = re.compile(r"<!-- begin (?P<name>[\w.]+) -->\n.*?<!-- end (?P=name) -->", re.DOTALL)


@cache
def compiled(target: str = TARGET) -> Compiled:
    """The decode layer at full size."""
    return lower_for(decode_layer, (), load_target(target), constants(FULL, target))


def stage(name: str, region: str) -> str:
    """A region as printed after a pass."""
    return format_stmt(find(dict(compiled().stages)[name], region))


def find(function: Function, name: str) -> Region:
    """The region of that name."""
    return next(s for s in walk(function.body) if isinstance(s, Region) and s.name == name)


def plan(region: str) -> str:
    """The memory plan of a region, buffer by buffer."""
    found: RegionPlan = next(r for r in compiled().plan.regions if r.name == region)
    lines = [f"{'space':<6} {'offset':>7} {'bytes':>7} {'buffers':>7}  tile"]
    for mem, space in found.spaces.items():
        for b in space.buffers:
            lines.append(
                f"{mem.name:<6} {b.offset:>7} {b.bytes:>7} {b.count:>7}  {b.name} {list(b.shape)} {b.dtype}"
            )
        lines.append(f"{mem.name:<6} peak {space.peak} of {space.limit} bytes")
    return "\n".join(lines)


def task(region: str) -> str:
    """The record of a region in the task graph."""
    text = compiled().graph.describe()
    return next(part for part in text.split("\n\n") if re.match(rf"\[\d+\] {region}:", part))


def domain(region: str) -> str:
    """The facts that a schedule starts from."""
    return next(d for d in compiled().domains if d.task.name == region).describe()


def schedule(region: str) -> str:
    """How a region runs on a GPU."""
    return next(s for s in compiled(GPU).schedules() if s.region == region).describe()


def snippet(name: str) -> str:
    """A snippet's source and, as fenced text of its own, what it prints."""
    file = SNIPPETS / f"{name}.py"
    run = subprocess.run(
        [sys.executable, file.name], cwd=SNIPPETS, capture_output=True, text=True, check=True
    )
    printed = run.stdout.replace(f"{SNIPPETS}/", "")
    return f"{file.read_text().rstrip()}\n```\n```text\n{printed}"


def support() -> str:
    """What becomes of every op on every backend, as Markdown; equal answers of a family share a row."""
    backends = [b for b in backend_table().values() if isinstance(b, Supports)]
    rows = [f"| operations | {' | '.join(b.name for b in backends)} |", "|---" * (1 + len(backends)) + "|"]
    for title, _, ops in FAMILIES:
        alike: dict[str, list[str]] = {}
        for o in ops:
            alike.setdefault(" | ".join(b.support(o.name) for b in backends), []).append(f"`{o.name}`")
        rows += [f"| {title}: {', '.join(names)} | {answers} |" for answers, names in alike.items()]
    return "\n".join(rows)


BLOCKS = {
    "ops.table": support,
    "first_kernel": lambda: snippet("first_kernel"),
    "first_error": lambda: snippet("first_error"),
    "gate_up.source": lambda: inspect.getsource(projection.project_gate_up.fn),
    "gate_up.front_end": lambda: stage("front_end", "gate_up_silu"),
    "gate_up.infer_memory": lambda: stage("infer_memory", "gate_up_silu"),
    "gate_up.split": lambda: stage("split", "gate_up_silu"),
    "gate_up.plan": lambda: plan("gate_up_silu"),
    "gate_up.task": lambda: task("gate_up_silu"),
    "gate_up.domain": lambda: domain("gate_up_silu"),
    "gate_up.schedule": lambda: schedule("gate_up_silu"),
    "attention.source": lambda: inspect.getsource(attention.attend_run.fn),
    "attention.front_end": lambda: stage("front_end", "attention"),
    "attention.infer_memory": lambda: stage("infer_memory", "attention"),
    "attention.plan": lambda: plan("attention"),
    "attention.task": lambda: task("attention"),
    "attention.domain": lambda: domain("attention"),
    "attention.schedule": lambda: schedule("attention"),
}


def refreshed(page: Path) -> str:
    """The page's text with every block written anew; an unknown block name is an error."""

    def block(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in BLOCKS:
            raise SystemExit(f"{page.name}: no block is called {name!r}; known: {', '.join(BLOCKS)}")
        text = BLOCKS[name]().rstrip()
        if name.endswith(".table"):
            return f"<!-- begin {name} -->\n{text}\n<!-- end {name} -->"
        language = "text" if name.endswith((".plan", ".task", ".domain", ".schedule")) else "python"
        return f"<!-- begin {name} -->\n```{language}\n{text}\n```\n<!-- end {name} -->"

    return BLOCK.sub(block, page.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description="Refresh the generated blocks of the pages.")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is stale")
    options = parser.parse_args()
    stale = False
    for page in PAGES:
        new = refreshed(page)
        if new != page.read_text():
            stale = True
            print(f"{page.name}: {'stale' if options.check else 'refreshed'}")
            if not options.check:
                page.write_text(new)
    return int(stale and options.check)


if __name__ == "__main__":
    sys.exit(main())
