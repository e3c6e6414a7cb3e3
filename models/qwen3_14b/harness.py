"""The front door: compile the decode layer, run it, and check every tensor it changes against the golden."""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from golden import Comparator, RunResult, TensorSpec, allclose, on_rows, rounding_bound, run, run_jit
from models.qwen3_14b import reference
from models.qwen3_14b.config import FULL, TINY, VOCAB_GRANULE, Config
from models.qwen3_14b.constants import constants
from models.qwen3_14b.decode_layer import decode_layer, decode_layer_with_head
from models.qwen3_14b.inputs import LmHead, make_inputs
from pypto_models.compile import DEFAULT_PLATFORM, Program, resolve_platform
from pypto_models.errors import UserError
from pypto_models.language import Kernel

CONFIGS = {"full": FULL, "tiny": TINY}
CACHES = ("k_cache", "v_cache")
FP32_TOLERANCE = 1e-5  # max abs, against the fp32 evaluation of the same equations


def kernel_for(lm_head: LmHead) -> Kernel:
    """The entry kernel of a step with or without the LM head."""
    kernel: Kernel = decode_layer if lm_head == "skip" else decode_layer_with_head
    return kernel


def head_rows(config: Config, lm_head: LmHead) -> int | None:
    """Rows of the LM head that a step computes; None for a step without it."""
    return {"skip": None, "single": VOCAB_GRANULE, "full": config.vocab_padded}[lm_head]


def compile_options(config: Config, platform: str, lm_head: LmHead) -> dict[str, Any]:
    """Keywords of `pypto_models.compile.compile` for a step."""
    target, _ = resolve_platform(platform)
    return {"constants": constants(config, target.name, head_rows=head_rows(config, lm_head))}


def check(
    config: Config,
    tensors: Mapping[str, Tensor],
    *,
    platform: str = DEFAULT_PLATFORM,
    lm_head: LmHead = "skip",
    compile_only: bool = False,
    dump_passes: Path | None = None,
    backend_options: Mapping[str, Any] | None = None,
    program: Program | None = None,
) -> RunResult:
    """Run a step on `tensors` (as made by `make_inputs`) and compare all that it may change.

    In bf16 a tensor passes if its distance from the fp64 evaluation is at most 2 times (maximum) and
    1.25 times (RMS) that of torch's bf16 evaluation; in fp32, if it is within 1e-5 of torch's.  Of the
    caches, this holds for the rows that the step writes; no other row may change by a bit.

    A `program` that is given runs as it is: the options of the compiler and of the backend do not apply.
    """
    kernel = kernel_for(lm_head)
    how = comparison(config, tensors, [p.name for p in program.params] if program else _names(kernel))
    specs = how.pop("specs")
    if program is not None:
        return run(program, specs, **how)
    options = compile_options(config, platform, lm_head)
    options["backend_options"] = backend_options
    if dump_passes is not None:
        options["dump_passes"] = dump_passes
    return run_jit(
        kernel,
        specs,
        compile_cfg=options,
        runtime_cfg={"platform": platform},
        compile_only=compile_only,
        **how,
    )


def _names(kernel: Kernel) -> list[str]:
    return [p.arg for p in kernel.node.args.args]


def comparison(
    config: Config, tensors: Mapping[str, Tensor], names: Sequence[str] | None = None
) -> dict[str, Any]:
    """What `golden` needs to compare a step on `tensors`: specs, golden, comparators, tolerances.

    `names` are the parameters of the kernel; by default those of the step without its LM head.
    """
    names = _names(kernel_for("skip")) if names is None else names
    exact: dict[str, Tensor] = {}

    def golden(values: dict[str, Any]) -> None:
        exact.update(reference.exact(values, config))
        reference.golden(values, config)

    return {
        "specs": [_spec(name, tensors[name]) for name in names],
        "golden_fn": golden,
        "compare_fn": _comparators(config, tensors, names, exact),
        "rtol": 0.0,
        "atol": FP32_TOLERANCE,
    }


def _spec(name: str, tensor: Tensor) -> TensorSpec:
    output = name in reference.OUTPUTS
    return TensorSpec(name, tuple(tensor.shape), tensor.dtype, None if output else tensor, output)


def _comparators(
    config: Config, tensors: Mapping[str, Tensor], names: Sequence[str], exact: Mapping[str, Tensor]
) -> dict[str, Comparator]:
    """One for each tensor that a step changes; `exact` is filled when the golden has run."""
    rows = written_rows(config, tensors)

    def near(name: str, only: Tensor | slice = slice(None)) -> Comparator:
        return allclose if config.dtype == "fp32" else rounding_bound(lambda: exact[name][only])

    outputs = {name: near(name) for name in reference.OUTPUTS if name in names}
    return outputs | {name: on_rows(rows, near(name, rows)) for name in CACHES}


def written_rows(config: Config, tensors: Mapping[str, Tensor]) -> Tensor:
    """Rows of the caches that this step writes: one per live row and KV head."""
    live = [row.row for row in reference.live_rows(tensors, config)]
    slots = tensors["slot_mapping"][live].long()[:, None]
    heads = torch.arange(config.kv_heads)
    return ((slots // config.page * config.kv_heads + heads) * config.page + slots % config.page).flatten()


# ------------------------------------------------------------------------------------------ command line
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="decode_layer.py",
        description="Compile one Qwen3-14B decode step, run it on a platform, and compare every tensor that "
        "it changes (hidden states, both caches, final norm, logits) with torch.",
        epilog="exit status: 0 if every comparison passed (or --compile-only), 1 if one did not, 2 for a "
        "mistake in the arguments",
    )
    add = parser.add_argument
    add("-p", "--platform", default=DEFAULT_PLATFORM, metavar="NAME",
        help="target and backend, such as a5sim or h200sim (default %(default)s)")  # fmt: skip
    add("-b", "--batch", type=int, default=16, metavar="N", help="sequences, 1 to 16 (default %(default)s)")
    add("--config", choices=CONFIGS, default="full",
        help="full: the published sizes; tiny: the same structure in seconds and megabytes")  # fmt: skip
    add("--dtype", choices=("bf16", "fp32"), default="bf16",
        help="element type of weights, caches and activations (default %(default)s)")  # fmt: skip
    add("--lm-head", choices=("full", "skip", "single"), default="full",
        help=f"logits of the whole vocabulary, none, or those of its first {VOCAB_GRANULE} rows")  # fmt: skip
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--max-seq", action="store_true", help="every context as long as the model allows")
    length.add_argument("--seq-len", type=int, metavar="N",
        help="every context N tokens, this step's included (default: ragged, random)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="of every input (default %(default)s)")
    add("--schedule", choices=("program", "random"), default="program",
        help="order of blocks and independent regions; random draws a legal one from --seed")  # fmt: skip
    add("--check-splits", action="store_true",
        help="also run every region that has a split without it, and compare bit for bit")  # fmt: skip
    add("--compile-only", action="store_true", help="stop after compiling")
    add("--dump-passes", type=Path, metavar="DIR",
        help="write the IR after every pass, the task graph and the memory plan")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the result as JSON")
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked; exits with 2 and a message if one is wrong."""
    parser = _parser()
    options = parser.parse_args(argv)
    config = replace(CONFIGS[options.config], dtype=options.dtype)
    if not 1 <= options.batch <= config.max_batch:
        parser.error(f"--batch is {options.batch}; a step has 1 to {config.max_batch} sequences")
    if options.seq_len is not None and not 1 <= options.seq_len <= config.max_seq:
        parser.error(f"--seq-len is {options.seq_len}; a context has 1 to {config.max_seq} tokens")
    try:
        resolve_platform(options.platform)
    except UserError as error:
        parser.error(f"--platform: {error.message}; {error.fix}")
    if options.seed < 0:
        parser.error(f"--seed is {options.seed}; it must be 0 or more")
    try:  # before a run of minutes, not after it
        if options.json is not None:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.open("a").close()
        if options.dump_passes is not None:
            options.dump_passes.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"cannot write {error.filename}: {error.strerror}")
    options.size, options.config = options.config, config
    options.context = config.max_seq if options.max_seq else options.seq_len or "ragged"
    return options


def asked_of_backend(options: argparse.Namespace) -> dict[str, Any]:
    """What the options ask of the backend; nothing where they leave it at its defaults."""
    asked: dict[str, Any] = {}
    if options.schedule != "program":
        asked |= {"schedule": options.schedule, "seed": options.seed}
    if options.check_splits:
        asked["check_splits"] = True
    return asked


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = _parse(argv)
    started = time.perf_counter()
    try:
        print(
            f"Qwen3-14B decode layer, {options.size} size, {options.dtype}: batch {options.batch}, "
            f"context {options.context}"
        )
        tensors = make_inputs(
            options.config, options.batch, options.context, seed=options.seed, lm_head=options.lm_head
        )
        made = time.perf_counter() - started
        print(f"[RUN] make inputs done ({made:.2f}s)", flush=True)
        result = check(
            options.config,
            tensors,
            platform=options.platform,
            lm_head=options.lm_head,
            compile_only=options.compile_only,
            dump_passes=options.dump_passes,
            backend_options=asked_of_backend(options),
        )
    except UserError as error:  # of the kernel, from the compiler or the simulator
        print(error, file=sys.stderr)
        return 1
    total = time.perf_counter() - started
    peak = peak_gib()
    print(f"whole command {total:.1f}s, peak memory {peak:.1f} GiB")
    if result.error:
        print(result.error)
    if options.json is not None:
        report = _report(options, result, {"make inputs": made, "whole command": total}, peak)
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if result.passed else 1


def peak_gib() -> float:
    """Most memory that this process has held, in GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _report(
    options: argparse.Namespace, result: RunResult, seconds: Mapping[str, float], peak: float
) -> dict[str, Any]:
    return {
        "model": "qwen3_14b",
        "config": options.size,
        "dtype": options.dtype,
        "platform": options.platform,
        "batch": options.batch,
        "context": options.context,
        "lm_head": options.lm_head,
        "seed": options.seed,
        "status": result.status,
        "passed": result.passed,
        "error": result.error,
        "seconds": {**result.stage_times, **seconds},
        "peak_gib": peak,
        "tensors": [
            {
                "name": r.name,
                "status": r.status,
                "shape": list(r.shape),
                "dtype": r.dtype,
                "rule": r.rule,
                "detail": r.detail,
                "max_error": r.max_error,
            }
            for r in result.reports.values()
        ],
    }
