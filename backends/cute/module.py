"""The lines around a kernel's body."""

from __future__ import annotations

from collections.abc import Sequence


def typed(name: str, kind: str) -> str:
    """A parameter of a kernel, as its source declares it."""
    return f"{name}: {'cute.Pointer' if kind.startswith('pointer') else kind}"


def signature(name: str, parameters: Sequence[tuple[str, str]]) -> str:
    """The line that a kernel begins with, of its (name, kind)."""
    return f"def {name}({', '.join(typed(*p) for p in parameters)}):"


def launcher(name: str, parameters: Sequence[tuple[str, str]], threads: int, resident: int = 0) -> list[str]:
    """The lines behind a kernel: what is compiled is a launch of it, whose grid the runtime replaces.

    ptxas takes no more registers than a core has for ``resident`` blocks, and spills none to make room for
    more; with 0 it weighs that itself.
    """
    room = f"min_blocks_per_mp={resident}, " if resident else ""
    if resident > 1:  # without a preference the DSL would ask the GPU at hand, and there may be none
        room += "preferred_smem_carveout=100, "
    return [
        "",
        "",
        "@cute.jit",
        signature(f"launch_{name}", parameters),
        f"    {name}({', '.join(n for n, _ in parameters)})"
        f".launch(grid=[1, 1, 1], block=[{threads}, 1, 1], {room}use_pdl=True)",
    ]
