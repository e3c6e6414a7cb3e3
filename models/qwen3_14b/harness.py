"""The front door: compile the decode layer, run it, and check every tensor it changes against the golden."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from golden import Comparator, RunResult, TensorSpec, allclose, on_rows, rounding_bound, run_jit
from models.qwen3_14b import reference
from models.qwen3_14b.config import FULL, TINY, VOCAB_GRANULE, Config
from models.qwen3_14b.constants import constants
from models.qwen3_14b.decode_layer import decode_layer, decode_layer_with_head
from models.qwen3_14b.inputs import LmHead, make_inputs
from pypto_models.compile import DEFAULT_PLATFORM, resolve_platform
from pypto_models.errors import UserError
from pypto_models.language import Kernel

CONFIGS = {"full": FULL, "tiny": TINY}
FP32_TOLERANCE = 1e-5  # max abs, against the fp32 evaluation of the same equations
CACHES = ("k_cache", "v_cache")


def kernel_for(lm_head: LmHead) -> Kernel:
    """The entry kernel of a step with or without the LM head."""
    return decode_layer if lm_head == "skip" else decode_layer_with_head


def head_rows(config: Config, lm_head: LmHead) -> int | None:
    """Rows of the LM head that a step computes."""
    return {"skip": None, "single": VOCAB_GRANULE, "full": config.vocab_padded}[lm_head]


def compile_options(config: Config, platform: str, lm_head: LmHead) -> dict[str, Any]:
    """Keywords of `pypto_models.compile.compile` for a step."""
    target, _ = resolve_platform(platform)
    return {"constants": constants(config, target.name, head_rows=head_rows(config, lm_head))}


def check(
    config: Config,
    tensors: dict[str, torch.Tensor],
    *,
    platform: str = DEFAULT_PLATFORM,
    lm_head: LmHead = "skip",
    compile_only: bool = False,
    dump_passes: Path | None = None,
    kernel: Kernel | None = None,
) -> RunResult:
    """Run a step on `tensors` (as made by `make_inputs`) and compare all that it may change.

    In bf16 a tensor passes if its distance from the fp64 evaluation is at most 2 times (maximum) and 1.25 times
    (RMS) that of torch's bf16 evaluation; in fp32, if it is within 1e-5 of it.  Cache rows of other tokens must
    not change by a bit.
    """
    kernel = kernel or kernel_for(lm_head)
    names = [p.arg for p in kernel.node.args.args]
    outputs = set(reference.OUTPUTS)
    specs = [
        TensorSpec(n, tuple(tensors[n].shape), tensors[n].dtype, None if n in outputs else tensors[n], n in outputs)
        for n in names
    ]
    exact: dict[str, torch.Tensor] = {}

    def golden(values: dict[str, Any]) -> None:
        exact.update(reference.exact(values, config))
        reference.golden(values, config)

    options = compile_options(config, platform, lm_head)
    if dump_passes is not None:
        options["dump_passes"] = dump_passes
    return run_jit(
        kernel,
        specs,
        golden_fn=golden,
        compile_cfg=options,
        runtime_cfg={"platform": platform},
        rtol=0.0,
        atol=FP32_TOLERANCE,
        compare_fn=_comparators(config, tensors, names, exact),
        compile_only=compile_only,
    )


def _comparators(
    config: Config, tensors: dict[str, torch.Tensor], names: Sequence[str], exact: dict[str, torch.Tensor]
) -> dict[str, Comparator]:
    rows = written_rows(config, tensors)

    def bound(name: str, pick: Callable[[torch.Tensor], torch.Tensor]) -> Comparator:
        return allclose if config.dtype == "fp32" else rounding_bound(lambda: pick(exact[name]))

    chosen: dict[str, Comparator] = {n: bound(n, lambda t: t) for n in reference.OUTPUTS if n in names}
    return chosen | {n: on_rows(rows, bound(n, lambda t: t[rows])) for n in CACHES}


def written_rows(config: Config, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """Rows of the caches that this step writes: one per live row and KV head."""
    slots = [int(tensors["slot_mapping"][row.row]) for row in reference.live_rows(tensors, config)]
    found = [
        (slot // config.page * config.kv_heads + head) * config.page + slot % config.page
        for slot in slots
        for head in range(config.kv_heads)
    ]
    return torch.tensor(found, dtype=torch.int64)


# ------------------------------------------------------------------------------------------ command line
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="decode_layer.py",
        description="Compile one Qwen3-14B decode step, run it on a platform, and compare every tensor that it "
        "changes (hidden states, both caches, final norm, logits) with torch.",
        epilog="exit status: 0 if every comparison passed (or --compile-only), 1 if not, 2 for a mistake in the "
        "arguments",
    )
    add = parser.add_argument
    add("-p", "--platform", default=DEFAULT_PLATFORM, help="target and backend, such as a2a3sim (default), a5sim, h200sim")
    add("-b", "--batch", type=int, default=16, help="sequences in the step, 1 to 16 (default 16)")
    add("--config", choices=CONFIGS, default="full", help="full: the published sizes; tiny: seconds and megabytes")
    add("--dtype", choices=("bf16", "fp32"), default="bf16", help="element type of weights, caches and activations")
    add("--lm-head", choices=("full", "skip", "single"), default="full",
        help="logits of the whole vocabulary, none, or of its first rows only")  # fmt: skip
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--max-seq", action="store_true", help="every context as long as the model allows")
    length.add_argument("--seq-len", type=int, metavar="N", help="every context N tokens (default: ragged, random)")
    add("--seed", type=int, default=0, help="of every input (default 0)")
    add("--compile-only", action="store_true", help="stop after compiling")
    add("--dump-passes", type=Path, metavar="DIR", help="write the IR after every pass, the task graph and the memory plan")
    add("--json", type=Path, metavar="FILE", help="write the result as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(argv)
    config = replace(CONFIGS[options.config], dtype=options.dtype)
    context: int | str = "ragged"
    if options.max_seq:
        context = config.max_seq
    elif options.seq_len is not None:
        context = options.seq_len
    started = time.perf_counter()
    try:
        resolve_platform(options.platform)
        print(f"Qwen3-14B decode layer, {options.config} size, {options.dtype}: batch {options.batch}, context {context}")
        tensors = make_inputs(config, options.batch, context, seed=options.seed, lm_head=options.lm_head)
        made = time.perf_counter() - started
        print(f"[RUN] make inputs done ({made:.2f}s)", flush=True)
        result = check(
            config, tensors, platform=options.platform, lm_head=options.lm_head, compile_only=options.compile_only,
            dump_passes=options.dump_passes,
        )  # fmt: skip
    except (UserError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    total = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"whole command {total:.1f}s, peak memory {peak:.1f} GiB")
    if result.error:
        print(result.error)
    if options.json is not None:
        options.json.write_text(json.dumps(_report(options, config, result, made, total, peak), indent=2) + "\n")
    return 0 if result.passed else 1


def _report(
    options: argparse.Namespace, config: Config, result: RunResult, made: float, total: float, peak: float
) -> dict[str, Any]:
    return {
        "model": "qwen3_14b",
        "config": options.config,
        "dtype": config.dtype,
        "platform": options.platform,
        "batch": options.batch,
        "lm_head": options.lm_head,
        "seed": options.seed,
        "status": result.status,
        "passed": result.passed,
        "error": result.error,
        "seconds": {"make inputs": made, **result.stage_times, "whole command": total},
        "peak_gib": peak,
        "tensors": [
            {"name": r.name, "status": r.status, "shape": list(r.shape), "dtype": r.dtype, "rule": r.rule,
             "detail": r.detail, "max_error": r.max_error}
            for r in result.reports.values()
        ],
    }  # fmt: skip
