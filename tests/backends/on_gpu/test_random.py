"""Random programs on a GPU against their direct evaluation in torch.

They come from bundles only: many compile in one process there.
"""

from __future__ import annotations

import pytest
import torch

from backends.gpu.runtime import Loaded
from tests.random.check import difference_of

from ..random_programs import program
from .programs import VARIABLE, bundle_folder


@pytest.mark.gpu
@pytest.mark.skipif(bundle_folder() is None, reason=f"{VARIABLE} names no folder of bundles")
def test_they_compute_what_torch_does() -> None:
    parent = bundle_folder()
    assert parent is not None
    folders = sorted((parent / "random").iterdir(), key=lambda f: int(f.name))
    assert len(folders) >= 20
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
