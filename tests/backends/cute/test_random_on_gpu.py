"""Random programs on a GPU against their direct evaluation in torch.

They come from bundles, so that the machine with the GPU needs no CUTLASS, and many compile in one process:

    python -m tests.backends.cute.test_random_on_gpu h200 build/random 100     # on the machine that compiles
    PYPTO_MODELS_RANDOM=build/random pytest -m gpu                             # on the machine with the GPU
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from backends.cute import Loaded
from backends.cute.bundle import assemble, save
from backends.cute.compiler import Refusal, Unit, compile_units
from pypto_models.ir.nodes import Function
from pypto_models.target import load_target
from tests.random.check import difference_of

from .test_random_programs import Found, attempt, program

BUNDLES = os.environ.get("PYPTO_MODELS_RANDOM")


@pytest.mark.gpu
@pytest.mark.skipif(BUNDLES is None, reason="PYPTO_MODELS_RANDOM names no folder of bundles")
def test_they_compute_what_torch_does() -> None:
    folders = sorted(Path(str(BUNDLES)).iterdir(), key=lambda f: int(f.name))
    assert folders
    wrong = []
    for folder in folders:
        try:
            wrong += check(int(folder.name), Loaded.open(folder))
        except Exception as error:  # of any class: the test lists them all
            wrong.append(f"seed {folder.name}: {type(error).__name__}: {error}")
            if isinstance(error, torch.AcceleratorError):
                break  # the context is lost
    print(f"{len(folders)} programs")
    assert not wrong, "\n".join(wrong)


def check(seed: int, loaded: Loaded) -> list[str]:
    """Every run of one program, twice: what is wrong, by tensor."""
    p = program(seed)
    wrong = []
    for i, extents in enumerate(p.extents):
        given = p.arguments(i)
        expected = p.expected(i, given)
        for again in range(2):
            there = {n: a.cuda() if isinstance(a, torch.Tensor) else a for n, a in given.items()}
            loaded(there)
            torch.cuda.synchronize()
            for q in p.parameters:
                if q.out is None:
                    continue
                found = difference_of(there[q.name].cpu(), expected, q.name, q.out.facts.tol)
                if found:
                    wrong.append(f"seed {seed} {extents} run {again}: {q.name}: {found}")
    return wrong


def build(target_name: str, folder: Path, count: int) -> None:
    """Bundles of the first ``count`` random programs that lower, named by their seeds."""
    target, found = load_target(target_name), Found()
    functions: dict[int, Function] = {}
    for seed in range(100_000):
        if len(functions) == count:
            break
        if (got := attempt(seed, target, found)) is not None:
            functions[seed], found.modules[seed] = got
    units = [Unit(m.source, {k.name: k.parameters for k in m.kernels}) for m in found.modules.values()]
    compiled = compile_units(units, str(target.arch))
    for (seed, module), code in zip(found.modules.items(), compiled, strict=True):
        if isinstance(code, Refusal):
            print(f"seed {seed}: {code.kernel}: {code.message}", file=sys.stderr)
            continue
        built = assemble(functions[seed], target, module, code)
        save(folder / str(seed), built.manifest, built.cubins, module.source)


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
