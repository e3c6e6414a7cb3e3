"""Every block of the layers, alone, against its golden; each run twice, bit for bit."""

from __future__ import annotations

import pytest

from golden import run

from .catalogue import block_entry, blocks
from .programs import options, program_of, this_platform, twice

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("name", blocks())
def test_a_block_is_right_and_the_same_twice(name: str) -> None:
    one = blocks()[name]
    shared_out = this_platform().backend.name == "cute"  # by warps, each with a maximum of its own
    program = program_of(f"blocks/{name}", lambda on: block_entry(one, on))
    for seed in one.seeds:
        check = one.block.check(one.layer.power, one.layer.config, seed, shared_out)
        result = run(twice(program), check.specs, seed=seed, **options(check))
        assert result.status == "PASS", f"inputs {seed}: {result.error}"
