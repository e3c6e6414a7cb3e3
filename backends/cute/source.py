"""The text around the bodies of kernels: signatures, launchers, the head of the file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pypto_models.ir.nodes import Region
from pypto_models.target import Target

if TYPE_CHECKING:
    from .lower import KernelSource


def kernel_text(
    name: str,
    s: Region,
    parameters: list[tuple[str, str]],
    body: list[str],
    threads: int,
    how: str,
    words: list[str],
) -> str:
    typed = [f"{n}: {'cute.Pointer' if k.startswith('pointer') else k}" for n, k in parameters]
    title = how if how == "stream" else f"block by block, since {how}"
    quoted = f'"""Line {s.span.line}: {title}.'
    doc = [quoted, "", *words, '"""'] if words else [f'{quoted}"""']
    head = ["@cute.kernel", f"def {name}({', '.join(typed)}):", *(f"    {x}" if x else x for x in doc)]
    if how != "stream":
        head += [
            "    tid, _, _ = cute.arch.thread_idx()",
            "    cta, _, _ = cute.arch.block_idx()",
            "    lane = cute.arch.lane_idx()",
            "    warp = cute.arch.make_warp_uniform(tid // 32)",
            "    smem = utils.SmemAllocator()",
            "    cute.arch.griddepcontrol_launch_dependents()",
            "    cute.arch.griddepcontrol_wait()",
        ]
    names = ", ".join(n for n, _ in parameters)
    launcher = [
        "",
        "",
        "@cute.jit",
        f"def launch_{name}({', '.join(typed)}):",
        f"    {name}({names}).launch(grid=[1, 1, 1], block=[{threads}, 1, 1], use_pdl=True)",
    ]
    return "\n".join([*head, *body, *launcher]) + "\n"


def module_source(name: str, target: Target, kernels: list[KernelSource]) -> str:
    wide = max((len(k.name) for k in kernels), default=0)
    listed = "\n".join(f"    {k.name:<{wide}}  {summary(k)}" for k in kernels)
    head = f'''"""{name} for {target.name} ({target.arch}), written by the compiler: one kernel per region.

{listed}
"""

import cutlass
import cutlass.cute as cute
import cutlass.utils as utils
from cutlass import BFloat16, Boolean, Float16, Float32, Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32

from backends.cute.device import block, stream
'''
    return "\n\n".join([head, *(k.text for k in kernels)])


def summary(k: KernelSource) -> str:
    if k.schedule is None or k.schedule.stream is None or k.schedule.ring is None:
        return f"block by block, {k.shared_bytes} bytes of shared memory"
    s, slots = k.schedule.stream, k.schedule.ring.slots
    warps = f"{s.warps_n} x {s.warps_k} warps"
    return f"stream: {k.schedule.ctas} CTAs, {warps}, steps of {s.step}, {slots} slots"
