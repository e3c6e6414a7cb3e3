"""The direction of imports, and the other rules about what a file may hold.

`MAY_IMPORT` is the design's picture of the layers as a table.  The checks read the source (ast), so an import
inside a function or under TYPE_CHECKING counts, and nothing has to be importable.  Each check takes the root
of a tree and returns its findings; the tests run it on this repository and on planted trees that break it.
"""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

REPO = Path(__file__).parent.parent

# layer: what its modules may import of this project, besides the layer itself.  A name stands for the module
# and all below it, "=name" for that module alone, "*" for any one name.  Where several rows match, the most
# specific holds.  With "*" each match is a layer of its own: no backend and no model sees another.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "pypto_models.errors": (),
    "pypto_models.gpu": (),
    "pypto_models.target": ("pypto_models.ir", "pypto_models.errors"),
    "pypto_models.ir": ("pypto_models.errors",),
    "pypto_models.ops": ("pypto_models.ir", "pypto_models.errors"),
    "pypto_models.language": ("pypto_models.ops", "pypto_models.ir", "pypto_models.errors"),
    "pypto_models.passes": (
        "pypto_models.ir", "pypto_models.ops", "pypto_models.target", "pypto_models.errors",
    ),
    "pypto_models.schedule": (
        "pypto_models.ir", "pypto_models.ops", "pypto_models.target", "pypto_models.errors",
    ),
    "pypto_models.artifact": ("pypto_models.ir", "pypto_models.target", "pypto_models.errors"),
    "pypto_models.backend": (
        "pypto_models.passes", "pypto_models.schedule", "pypto_models.ir", "pypto_models.target",
    ),
    "pypto_models.cache": ("pypto_models.ops", "pypto_models.ir", "pypto_models.errors"),
    "pypto_models.compile": (
        "pypto_models.backend", "pypto_models.cache",
        "pypto_models.passes", "pypto_models.schedule", "pypto_models.language", "pypto_models.artifact",
        "pypto_models.ir", "pypto_models.ops", "pypto_models.target", "pypto_models.errors",
        "=backends",  # the table, to look a name up; never a backend
    ),
    "pypto_models.docs": (
        "pypto_models.language", "pypto_models.ops", "pypto_models.ir", "pypto_models.errors",
    ),
    "pypto_models.foreign": ("pypto_models.language", "pypto_models.errors"),
    "pypto_models.cost": (
        "pypto_models.ir", "pypto_models.ops", "pypto_models.target", "pypto_models.errors",
    ),
    "pypto_models.kernel_file": ("pypto_models.foreign", "pypto_models.language", "pypto_models.errors"),
    "pypto_models.plot": (
        "pypto_models.cost", "pypto_models.passes", "pypto_models.ir", "pypto_models.errors",
    ),
    "pypto_models.tuning": (
        "pypto_models.backend", "pypto_models.gpu", "pypto_models.compile", "pypto_models.cost",
        "pypto_models.schedule",
        "pypto_models.language", "pypto_models.ops", "pypto_models.ir", "pypto_models.target",
        "pypto_models.errors",
    ),
    "pypto_models.commands": (
        "pypto_models.backend", "pypto_models.check", "pypto_models.compile", "pypto_models.cost",
        "pypto_models.tuning",
        "pypto_models.kernel_file", "pypto_models.plot", "pypto_models.passes", "pypto_models.schedule",
        "pypto_models.ir", "pypto_models.target", "pypto_models.errors",
        "golden.power", "golden.power_run",
    ),
    "pypto_models.faults": ("pypto_models.ops", "pypto_models.ir", "pypto_models.errors"),
    "pypto_models.check": (
        "pypto_models.backend", "pypto_models.compile", "pypto_models.kernel_file", "pypto_models.language",
        "pypto_models.passes", "pypto_models.schedule", "pypto_models.target", "pypto_models.errors",
    ),
    "pypto_models.cli": ("pypto_models", "=backends"),
    "pypto_models.__main__": ("pypto_models.cli",),
    "=pypto_models": ("pypto_models",),  # the package's own __init__.py: what it re-exports
    "=backends": ("pypto_models", "backends"),  # the table of backends
    "backends.*": ("pypto_models", "=backends", "backends.gpu"),
    "backends.gpu": ("pypto_models",),  # what the GPU backends share
    "golden": (
        "pypto_models.compile", "pypto_models.errors",
        "pypto_models.faults", "pypto_models.foreign",  # to measure the power of a comparison
    ),
    "=models": (),
    "models.common": ("pypto_models.language", "pypto_models.gpu", "pypto_models.errors"),
    "models.common.tiling": (  # defaults follow from a target's cores and memory
        "models.common", "pypto_models.language", "pypto_models.target", "pypto_models.errors",
    ),
    **dict.fromkeys(  # the command line of a model, its comparison and the power of that
        ("models.common.harness", "models.common.frontdoor", "models.common.power", "models.common.blocks",
         "models.common.layer_blocks"),
        ("models.common", "golden", "pypto_models.language", "pypto_models.compile", "pypto_models.errors"),
    ),
    **dict.fromkeys(  # whole models: programs by demand, and what runs them
        ("models.common.programs", "models.common.decoder", "models.common.generation"),
        ("models.common", "pypto_models.language", "pypto_models.compile", "pypto_models.errors"),
    ),
    "models.generate": ("models", "pypto_models.compile", "pypto_models.errors"),
    "models.*": (
        "pypto_models.language", "pypto_models.compile", "pypto_models.errors", "golden", "models.common",
        "models.*.reference",
    ),
    # torch only, so that it shares no mistake with the kernels
    "models.*.reference": ("models.*.config", "models.common.equations"),
    "models.common.equations": ("models.common.config",),
    "tools": ("pypto_models", "backends", "golden", "models"),
    "examples": ("pypto_models.language", "pypto_models.compile", "golden"),
}  # fmt: skip

PACKAGES = ("pypto_models", "backends", "golden", "models", "tools", "examples")
BACKENDS = {"sim", "cute", "triton", "pto"}  # known even while their folders are not there

# Vendor toolchains are imported where a backend compiles and launches, and by the code that is compiled, so
# that emitting needs none of them.
VENDOR = {"triton", "cutlass", "cuda", "hip", "pypto", "torch_npu"}
VENDOR_HOMES = (
    "backends.*.driver", "backends.*.compiler", "backends.*.device", "backends.*.interpreter",
    "tools.gpu_bench.reading",  # a kernel that only reads, to measure others against: part of no program
)  # fmt: skip

# Compiler, backends and harness know no model.
MODEL_BLIND = ("pypto_models", "backends", "golden")
MODEL_NAMES = ("qwen", "llama", "gemma", "mistral", "mixtral", "deepseek")

MAX_LINES = 600  # a file holds one idea; emit.py, one device kernel's text, may be longer
MAX_TOOL_LINES = 200
GUARDS = ("__name__ == '__main__'", "TYPE_CHECKING")


# -------------------------------------------------------------------------------------------- reading a tree
def files_in(root: Path, folders: tuple[str, ...], suffixes: tuple[str, ...] = (".py",)) -> list[Path]:
    """The files of `folders`, sorted.  A folder may be absent; no file at all is an error, not a pass."""
    found = [
        path
        for folder in folders
        for path in sorted((root / folder).rglob("*"))
        if path.suffix in suffixes and "__pycache__" not in path.parts
    ]
    if not found:
        raise FileNotFoundError(f"no {' or '.join(suffixes)} file under {root} in {', '.join(folders)}")
    return found


def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def module_name(root: Path, path: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(root: Path, name: str) -> bool:
    package, _, last = name.rpartition(".")
    path = root.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file() or (package == "backends" and last in BACKENDS)


def imports(root: Path, path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute module name of every import, wherever in the file it stands."""
    package = module_name(root, path).split(".")
    if path.name != "__init__.py":
        package.pop()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = package[: len(package) - level + 1] if level else []
                source = ".".join([*base, *([module] if module else [])])
                for alias in names:  # `from backends import sim` imports a module, not a name
                    name = f"{source}.{alias.name}"
                    yield node.lineno, name if is_module(root, name) else source
            case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]):
                called = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
                if called in ("import_module", "__import__"):
                    yield node.lineno, name


# ---------------------------------------------------------------------------------------------- the table
def covers(entry: str, module: str) -> bool:
    """Whether a row or an entry of the table stands for `module`."""
    if entry.startswith("="):
        return module == entry[1:]
    wanted, parts = entry.split("."), module.split(".")
    return len(parts) >= len(wanted) and all(map(fnmatchcase, parts, wanted))


def layer_of(module: str) -> tuple[str, str] | None:
    """The row that holds for `module`, and the concrete layer it belongs to (a row with "*" makes many)."""
    rows = [row for row in MAY_IMPORT if covers(row, module)]
    if not rows:
        return None
    row = max(rows, key=lambda row: (row.count("."), len(row)))
    return row, ".".join(module.split(".")[: row.count(".") + 1])


# --------------------------------------------------------------------------------------------- the checks
def check_direction(root: Path) -> list[str]:
    """Every import inside the project follows the table."""
    found = []
    for path in files_in(root, PACKAGES):
        module, place = module_name(root, path), path.relative_to(root)
        layer = layer_of(module)
        if layer is None:
            found.append(f"{place}: {module} is in no layer; add a row to MAY_IMPORT")
            continue
        row, own = layer
        for line, target in imports(root, path):
            if target.split(".")[0] not in (*PACKAGES, "tests"):
                continue
            if layer_of(target) == layer or any(covers(entry, target) for entry in MAY_IMPORT[row]):
                continue
            allowed = ", ".join(MAY_IMPORT[row]) or "nothing of the project"
            found.append(f"{place}:{line}: {own} imports {target}; it may import {allowed}")
    return found


def check_vendor_imports(root: Path) -> list[str]:
    """Vendor toolchains are imported in backends/*/{driver,compiler,interpreter,device} only."""
    return [
        f"{path.relative_to(root)}:{line}: imports {target}; only driver, compiler and device may"
        for path in files_in(root, PACKAGES)
        if not any(covers(home, module_name(root, path)) for home in VENDOR_HOMES)
        for line, target in imports(root, path)
        if target.split(".")[0] in VENDOR
    ]


def check_model_names(root: Path) -> list[str]:
    """Compiler, backends and harness name no model, in code, comments, data or file names."""
    folders = {path.name for path in (root / "models").glob("*/") if path.is_dir()}
    names = {*MODEL_NAMES, *folders} - {"common", "__pycache__"}
    pattern = re.compile("|".join(map(re.escape, sorted(names, reverse=True))), re.IGNORECASE)
    found = []
    for path in files_in(root, MODEL_BLIND, (".py", ".yaml", ".md", ".txt")):
        place = path.relative_to(root)
        if name := pattern.search(str(place)):
            found.append(f"{place}: the file's name holds the model name {name[0]!r}")
        for line, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if name := pattern.search(text):
                found.append(f"{place}:{line}: holds the model name {name[0]!r}: {text.strip()}")
    return found


def check_length(root: Path) -> list[str]:
    """No file is longer than MAX_LINES, emitters aside."""
    return [
        f"{path.relative_to(root)}: {lines} lines, {MAX_LINES} at most; split it by idea"
        for path in files_in(root, (*PACKAGES, "tests"))
        if path.name != "emit.py" and (lines := count_lines(path)) > MAX_LINES
    ]


def check_tools(root: Path) -> list[str]:
    """A tool is short, has a main(), and does nothing when imported; what folders hold is its work."""
    passive = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    found = []
    for path in files_in(root, ("tools",)):
        if path.parent != root / "tools":
            continue
        place, body = path.relative_to(root), ast.parse(path.read_text(encoding="utf-8"), str(path)).body
        if (lines := count_lines(path)) > MAX_TOOL_LINES:
            found.append(f"{place}: {lines} lines, {MAX_TOOL_LINES} at most; move the work into a package")
        mains = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "main"]
        if path.name != "__init__.py" and not mains:
            found.append(f"{place}: has no main()")
        for node in body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            guard = isinstance(node, ast.If) and ast.unparse(node.test) in GUARDS
            if not (isinstance(node, passive) or docstring or guard):
                found.append(f"{place}:{node.lineno}: runs when imported; move it into main()")
    return found


CHECKS = (check_direction, check_vendor_imports, check_model_names, check_length, check_tools)
Check = Callable[[Path], list[str]]


# ---------------------------------------------------------------------------------------------- this tree
@pytest.mark.parametrize("check", CHECKS)
def test_repository(check: Check) -> None:
    found = check(REPO)
    assert not found, "\n".join(found)


def test_the_table_has_no_cycle() -> None:
    rows = {row: set(allowed) for row, allowed in MAY_IMPORT.items() if row.startswith("pypto_models.")}
    below = {row: {entry for entry in allowed if entry in rows} for row, allowed in rows.items()}
    order = list(graphlib.TopologicalSorter(below).static_order())  # raises CycleError, naming the cycle
    assert order[0] == "pypto_models.errors"
    ir, ops, driver = (order.index(f"pypto_models.{name}") for name in ("ir", "ops", "compile"))
    assert ir < ops < driver


# ---------------------------------------------------------------------------------- the checks themselves
def plant(root: Path, files: dict[str, str]) -> Path:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return root


ALLOWED_IMPORTS = {
    "pypto_models/ops/reduce.py": "from ..ir.nodes import Let\nfrom ..errors import Span\nimport torch\n",
    "pypto_models/ir/nodes.py": "from .types import DType\nfrom . import expr\n",
    "pypto_models/passes/__init__.py": "from .inline import inline\nfrom ..target import Target\n",
    "pypto_models/compile.py": "import backends\nfrom backends import load\n",
    "backends/__init__.py": "import importlib\nfrom pypto_models.errors import user_error\n",
    "backends/sim/runtime.py": "import backends\nfrom . import rules\nimport pypto_models.ir.nodes\n",
    "golden/runner.py": "from pypto_models.compile import compile\nfrom .spec import TensorSpec\n",
    "models/qwen/decode_layer.py": "import pypto_models.language as pl\nfrom models.common.norm import f\n",
    "models/qwen/reference.py": "import torch\nfrom models.qwen.config import HIDDEN\n",
    "tools/bench.py": "import backends.sim.runtime\nfrom golden.runner import run\n",
}


@pytest.mark.parametrize("file", ALLOWED_IMPORTS)
def test_direction_accepts(tmp_path: Path, file: str) -> None:
    assert check_direction(plant(tmp_path, {file: ALLOWED_IMPORTS[file]})) == []


FORBIDDEN_IMPORTS = [
    ("pypto_models/errors.py", "from .ir import nodes", "pypto_models.ir"),
    ("pypto_models/ir/nodes.py", "from ..ops.registry import OpDef", "pypto_models.ops.registry"),
    ("pypto_models/ir/deep/er.py", "from ...ops import registry", "pypto_models.ops"),
    ("pypto_models/ops/__init__.py", "from ..language import at", "pypto_models.language"),
    ("pypto_models/language/jit.py", "def f():\n    from ..compile import compile", "pypto_models.compile"),
    ("pypto_models/passes/plan.py", "import pypto_models.language as pl", "pypto_models.language"),
    ("pypto_models/schedule/planner.py", "from ..passes.outline import f", "pypto_models.passes.outline"),
    ("pypto_models/target.py", "from pypto_models import compile", "pypto_models"),
    ("pypto_models/ir/types.py", "if TYPE_CHECKING:\n    from golden import spec", "golden"),
    ("pypto_models/compile.py", "from backends import sim", "backends.sim"),
    ("pypto_models/cli.py", "import backends.gpu.runtime", "backends.gpu.runtime"),
    ("pypto_models/cli.py", "importlib.import_module('backends.pto')", "backends.pto"),
    ("backends/sim/backend.py", "from golden.compare import compare", "golden.compare"),
    ("backends/cute/emit.py", "from ..triton import rules", "backends.triton"),
    ("golden/runner.py", "from pypto_models.passes import PIPELINE", "pypto_models.passes"),
    ("golden/runner.py", "import backends", "backends"),
    ("models/qwen/decode_layer.py", "from pypto_models.ir import nodes", "pypto_models.ir"),
    ("models/qwen/decode_layer.py", "import backends.sim", "backends.sim"),
    ("models/common/norm.py", "from models.qwen.config import HIDDEN", "models.qwen.config"),
    ("models/qwen/decode_layer.py", "from models.other import config", "models.other"),
    ("models/qwen/reference.py", "from models.qwen.decode_layer import rope", "models.qwen.decode_layer"),
    ("tools/dump.py", "from tests.conftest import no_gpu", "tests.conftest"),
    ("examples/gemm.py", "from models.common import norm", "models.common"),
]


@pytest.mark.parametrize(("file", "source", "target"), FORBIDDEN_IMPORTS)
def test_direction_refuses(tmp_path: Path, file: str, source: str, target: str) -> None:
    plant(tmp_path, {"models/common/__init__.py": "", file: source})
    found = check_direction(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(f"{file}:{len(source.splitlines())}: ")
    assert re.search(rf" imports {re.escape(target)}(\.\w+)?; it may import ", found[0])


def test_direction_refuses_a_module_outside_the_table(tmp_path: Path) -> None:
    assert check_direction(plant(tmp_path, {"pypto_models/extra.py": ""})) == [
        "pypto_models/extra.py: pypto_models.extra is in no layer; add a row to MAY_IMPORT"
    ]


def test_vendor_imports(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {
            "backends/gpu/driver.py": "from hip import hip\n",
            "backends/cute/compiler.py": "import cutlass\n",
            "backends/cute/device/ring.py": "import cutlass.cute as cute\n",
            "backends/triton/rules.py": "import backends.triton\n",
            "backends/cute/emit.py": "\nfrom cutlass import cute\n",
            "golden/run.py": "import cuda.bindings\n",
        },
    )
    assert check_vendor_imports(tmp_path) == [
        "backends/cute/emit.py:2: imports cutlass; only driver, compiler and device may",
        "golden/run.py:1: imports cuda.bindings; only driver, compiler and device may",
    ]


def test_model_names(tmp_path: Path) -> None:
    plant(
        tmp_path,
        {
            "models/newnet/a.py": "qwen",
            "models/qwen3/a.py": "",
            "pypto_models/targets/a2a3.yaml": "cores: 24\n# as in Qwen3\n",
            "backends/sim/llama.py": "",
            "backends/sim/plain.py": "# a common decoder\n",
            "golden/spec.py": "NAME = 'newnet'\n",
        },
    )
    assert check_model_names(tmp_path) == [
        "pypto_models/targets/a2a3.yaml:2: holds the model name 'Qwen3': # as in Qwen3",
        "backends/sim/llama.py: the file's name holds the model name 'llama'",
        "golden/spec.py:1: holds the model name 'newnet': NAME = 'newnet'",
    ]


def test_length(tmp_path: Path) -> None:
    long = "x = 1\n" * (MAX_LINES + 1)
    plant(tmp_path, {"backends/cute/emit.py": long, "golden/spec.py": long[6:]})
    assert check_length(tmp_path) == []
    plant(tmp_path, {"tests/ops/test_ops.py": long})
    assert check_length(tmp_path) == ["tests/ops/test_ops.py: 601 lines, 600 at most; split it by idea"]


def test_tools(tmp_path: Path) -> None:
    good = '"""Doc."""\nimport sys\nN = 1\ndef main():\n    pass\nif __name__ == "__main__":\n    main()\n'
    plant(tmp_path, {"tools/__init__.py": '"""Doc."""\n', "tools/bench.py": good})
    assert check_tools(tmp_path) == []
    plant(tmp_path, {"tools/fat.py": good + "# x\n" * 194, "tools/loose.py": "print(1)\n"})
    assert check_tools(tmp_path) == [
        "tools/fat.py: 201 lines, 200 at most; move the work into a package",
        "tools/loose.py: has no main()",
        "tools/loose.py:1: runs when imported; move it into main()",
    ]


@pytest.mark.parametrize("check", CHECKS)
def test_no_file_seen_is_an_error(tmp_path: Path, check: Check) -> None:
    (tmp_path / "pypto_models").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.py.* file under"):
        check(tmp_path)
