"""The cache of kernels: what is equal is compiled once, and nothing else is taken for equal.

A compiler that only counts stands in for the DSL, so nothing here needs CUTLASS but its version.
"""

from __future__ import annotations

import json
import multiprocessing
import time
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from backends.cute.compiler import CuteToolchain
from backends.gpu.cache import FOLDER_VARIABLE, default_folder, kernel_key, machine_code, meaning
from backends.gpu.toolchain import Results, Unit
from pypto_models.backend import Progress
from pypto_models.compile import PROGRAMS
from pypto_models.compile import compile as compile_program

from ..cute.support import CountingCompiler, module_of, needs_cutlass, project, twice, two_regions

pytestmark = needs_cutlass  # its version is part of a key
ARCH = "sm_90a"
CUTE = CuteToolchain()


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> CountingCompiler:
    counter = CountingCompiler()
    monkeypatch.setattr(CuteToolchain, "compile_units", counter)
    return counter


def test_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    assert default_folder("cute") == tmp_path / "cute"
    monkeypatch.delenv(FOLDER_VARIABLE)
    assert default_folder("cute") == Path.home() / ".cache" / "pypto-models" / "cute"


def test_a_second_request_finds_what_the_first_compiled(counting: CountingCompiler, tmp_path: Path) -> None:
    module = module_of(two_regions)
    first = machine_code(CUTE, module, ARCH, folder=tmp_path)
    assert counting.wanted == [("first", "second")]
    assert machine_code(CUTE, module, ARCH, folder=tmp_path) == first  # bytes, texts, symbols, resources
    assert machine_code(CUTE, module_of(two_regions), ARCH, folder=tmp_path) == first  # lowered anew
    assert len(counting.wanted) == 1


def test_an_edit_compiles_the_kernels_that_it_reaches(counting: CountingCompiler, tmp_path: Path) -> None:
    machine_code(CUTE, module_of(two_regions), ARCH, folder=tmp_path)
    machine_code(CUTE, module_of(two_regions, SCALE=3.0), ARCH, folder=tmp_path)
    assert counting.wanted == [("first", "second"), ("first",)]


def test_what_a_key_is_made_of(monkeypatch: pytest.MonkeyPatch) -> None:
    module = module_of(two_regions)
    first, second = module.kernels
    key = kernel_key(CUTE, module, first, ARCH)
    assert kernel_key(CUTE, module, second, ARCH).differs(key)[-1] == "source"
    assert kernel_key(CUTE, module, first, "sm_121a").differs(key) == ("arch",)
    alone = module_of(twice)
    moved = replace(alone, source=alone.source.replace('"""Line ', '"""Line 1'))
    assert moved.source != alone.source
    assert kernel_key(CUTE, moved, moved.kernels[0], ARCH) == kernel_key(CUTE, alone, alone.kernels[0], ARCH)
    shared = replace(module, source=module.source + "\nEXTRA = 1\n")
    assert kernel_key(CUTE, shared, first, ARCH).differs(key) == ("source",)  # what all kernels may use
    for changed in ("threads", "shared_bytes", "options"):
        other = replace(first, **{changed: (("num_stages", 3),) if changed == "options" else 128})
        part = "options" if changed == "options" else "block"
        assert kernel_key(CUTE, module, other, ARCH).differs(key) == (part,)
    monkeypatch.setattr(CuteToolchain, "versions", lambda self: {"nvidia-cutlass-dsl": "0"})
    assert kernel_key(CUTE, module, first, ARCH).differs(key) == ("versions",)
    monkeypatch.undo()
    monkeypatch.setattr("backends.cute.compiler.sources", lambda folder: folder.name)
    assert kernel_key(CUTE, module, first, ARCH).differs(key) == ("device",)


def test_the_meaning_of_a_source() -> None:
    text = 'def f(a):\n    """One."""\n    return a + 1  # more\n'
    assert meaning(text) == meaning('def f( a ):\n    """Two."""\n\n    return a+1\n')
    assert meaning(text) != meaning(text.replace("+ 1", "+ 2"))


def test_40_equal_layers_compile_once(
    counting: CountingCompiler, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    for layer in range(40):
        if layer == 20:
            PROGRAMS.clear()  # as a new process would find it
        compile_program(two_regions, platform="h200")
    assert counting.wanted == [("first", "second")]


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.zip"))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(b"kernel.binary") + len("kernel.cubin") + 2
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


def _rewritten(path: Path, **changes: object) -> None:
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    about = {**json.loads(parts["about.json"]), **changes}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**parts, "about.json": json.dumps(about).encode()}.items():
            archive.writestr(name, data)


def another_hash(path: Path) -> None:
    _rewritten(path, binary="0" * 64)


def another_key(path: Path) -> None:
    _rewritten(path, key={})


@pytest.mark.parametrize("damage", [truncated, empty, flipped, another_hash, another_key])
def test_a_damaged_entry_is_compiled_again_with_a_warning(
    counting: CountingCompiler, tmp_path: Path, damage: object
) -> None:
    module = module_of(twice)
    good = machine_code(CUTE, module, ARCH, folder=tmp_path)
    (path,) = entries(tmp_path)
    damage(path)  # type: ignore[operator]
    with pytest.warns(RuntimeWarning, match="is damaged .*; twice is compiled again"):
        assert machine_code(CUTE, module, ARCH, folder=tmp_path) == good
    assert counting.wanted == [("twice",)] * 2
    assert machine_code(CUTE, module, ARCH, folder=tmp_path) == good  # mended
    assert len(counting.wanted) == 2


def test_a_folder_that_cannot_be_written_is_a_warning(counting: CountingCompiler, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        assert machine_code(CUTE, module_of(twice), ARCH, folder=file).keys() == {"twice"}
    assert counting.wanted == [("twice",)]


def test_nothing_is_kept_of_a_build_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(*args: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(CuteToolchain, "compile_units", fails)
    with pytest.raises(RuntimeError, match="no"):
        machine_code(CUTE, module_of(twice), ARCH, folder=tmp_path)
    assert entries(tmp_path) == [] and not list(tmp_path.rglob("*.new"))


def _process(folder: Path, log: Path, start: float) -> None:
    """One of several that want the same kernels at the same time."""

    class Slow(CuteToolchain):
        def compile_units(
            self, units: Sequence[Unit], arch: str, progress: Progress | None = None
        ) -> Results:
            with log.open("a") as file:
                file.write(f"{','.join(k.name for u in units for k in u.kernels)}\n")
            time.sleep(0.5)
            return CountingCompiler()(units, arch)

    module = module_of(project)
    time.sleep(max(0.0, start - time.time()))
    code = machine_code(Slow(), module, ARCH, folder=folder)
    assert code["project"].binary == b"sm_90a project"


def test_two_processes_at_once_compile_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log, start = tmp_path / "log", time.time() + 0.5
    processes = [context.Process(target=_process, args=(tmp_path / "cache", log, start)) for _ in range(2)]
    for p in processes:
        p.start()
    for p in processes:
        p.join(60)
    assert [p.exitcode for p in processes] == [0, 0]
    assert log.read_text() == "project\n"
    assert len(entries(tmp_path / "cache")) == 1
