"""The command line of a model: compile a decode step, run it, and check every tensor that it changes."""

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

from rich.console import Console

from golden import RunResult
from golden.power import load_cases, subjects_in
from golden.power_run import run_power
from models.common.harness import LayerKind
from models.common.step_inputs import MAX_SPAN
from pypto_models.compile import DEFAULT_PLATFORM, resolve_platform
from pypto_models.errors import UserError


def _parser(kinds: Sequence[LayerKind]) -> argparse.ArgumentParser:
    first = kinds[0]
    parser = argparse.ArgumentParser(
        prog="decode_layer.py",
        description=f"Compile one {first.title}, run it on a platform, and compare every tensor that it "
        "changes (hidden states, caches, states, final norm, logits) with torch.",
        epilog="exit status: 0 if every comparison passed (or --compile-only), 1 if one did not, 2 for a "
        "mistake in the arguments",
    )
    add = parser.add_argument
    if len(kinds) > 1:
        add("--layer", choices=[k.name for k in kinds], default=first.name,
            help="kind of layer (default %(default)s)")  # fmt: skip
    add("-p", "--platform", default=DEFAULT_PLATFORM, metavar="NAME",
        help="target and backend, such as a5sim or h200sim (default %(default)s)")  # fmt: skip
    add("-b", "--batch", type=int, default=16, metavar="N", help="sequences, 1 to 16 (default %(default)s)")
    add("--tokens", type=_tokens, default=1, metavar="N|ragged",
        help=f"query rows of each sequence, 1 to {MAX_SPAN}, as in a speculative verify step; ragged draws "
        f"0 to {MAX_SPAN} for each (default %(default)s)")  # fmt: skip
    add("--config", choices=first.configs, default="full",
        help="full: the published sizes; tiny: the same structure in seconds and megabytes")  # fmt: skip
    add("--dtype", choices=("bf16", "fp32"), default="bf16",
        help="element type of weights, caches and activations (default %(default)s)")  # fmt: skip
    add("--lm-head", choices=("full", "skip", "single"), default="full",
        help="logits of the whole vocabulary, none, or those of its first "
        f"{first.head_chunk} rows")  # fmt: skip
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--max-seq", action="store_true", help="every context as long as the model allows")
    length.add_argument("--seq-len", type=int, metavar="N",
        help="every context N tokens, this step's included (default: ragged, random)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="of every input (default %(default)s)")
    add("--schedule", choices=("program", "random"), default="program",
        help="order of blocks and independent regions; random draws a legal one from --seed")  # fmt: skip
    add("--check-splits", action="store_true",
        help="also run every region that has a split without it, and compare bit for bit")  # fmt: skip
    add("--no-checks", action="store_true",
        help="ask nothing of accesses to memory, to see what the checks of the simulator cost")  # fmt: skip
    add("--compile-only", action="store_true", help="stop after compiling")
    add("--dump-passes", type=Path, metavar="DIR",
        help="write the IR after every pass, the task graph and the memory plan")  # fmt: skip
    add("--power", action="store_true",
        help="instead of one run, put faults into the step without its LM head, one at a time, and count "
        "those that the comparison notices; with --config and --json only; hours at full size")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the result as JSON")
    return parser


def _tokens(text: str) -> int | str:
    """The value of --tokens."""
    if text == "ragged":
        return text
    if not text.isdecimal() or not 1 <= int(text) <= MAX_SPAN:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'ragged' nor one of 1 to {MAX_SPAN}")
    return int(text)


_WITH_POWER = ("layer", "config", "lm_head", "power", "json")  # what --power takes


def _parse(kinds: Sequence[LayerKind], argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked; exits with 2 and a message if one is wrong."""
    parser = _parser(kinds)
    options = parser.parse_args(argv)
    options.kind = next(k for k in kinds if k.name == getattr(options, "layer", kinds[0].name))
    config = replace(options.kind.configs[options.config], dtype=options.dtype)
    if not 1 <= options.batch <= config.max_batch:
        parser.error(f"--batch is {options.batch}; a step has 1 to {config.max_batch} sequences")
    if options.seq_len is not None and not 1 <= options.seq_len <= config.max_seq:
        parser.error(f"--seq-len is {options.seq_len}; a context has 1 to {config.max_seq} tokens")
    most = MAX_SPAN if options.tokens == "ragged" else options.tokens
    if options.seq_len is not None and options.seq_len < most:
        parser.error(f"--seq-len is {options.seq_len}; a context holds the {most} tokens of --tokens")
    try:
        resolve_platform(options.platform)
    except UserError as error:
        parser.error(f"--platform: {error.message}; {error.fix}")
    if options.seed < 0:
        parser.error(f"--seed is {options.seed}; it must be 0 or more")
    if options.power:
        for action in parser._actions:
            name = action.dest
            if name not in (*_WITH_POWER, "help") and getattr(options, name) != action.default:
                parser.error(f"--power makes its own inputs; leave out {action.option_strings[-1]}")
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
    if options.no_checks:
        asked["checks"] = False
    return asked


def run_front_door(kinds: Sequence[LayerKind], script: Path, argv: Sequence[str] | None = None) -> int:
    """The command line of `script` for the layer kinds of one model; returns the exit status."""
    options = _parse(kinds, argv)
    kind: LayerKind = options.kind
    started = time.perf_counter()
    try:
        if options.power:
            return _power(kind, script, options)
        print(
            f"{kind.title}, {options.size} size, {options.dtype}: batch {options.batch}, "
            f"context {options.context}, tokens {options.tokens}"
        )
        tensors = kind.make_inputs(
            options.config,
            options.batch,
            options.context,
            tokens=options.tokens,
            span=MAX_SPAN if options.tokens == "ragged" else options.tokens,
            seed=options.seed,
            lm_head=options.lm_head,
        )
        made = time.perf_counter() - started
        print(f"[RUN] make inputs done ({made:.2f}s)", flush=True)
        result = kind.check(
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


def _power(kind: LayerKind, script: Path, options: argparse.Namespace) -> int:
    if options.size == "full":
        print("warning: every fault is one run of the whole step: at full size this takes hours", flush=True)
    cases = [case for case in load_cases(script, options.size) if case.kernel.name == kind.kernel.name]
    return run_power(script, options.size, subjects_in(cases), Console(), json_file=options.json)


def peak_gib() -> float:
    """Most memory that this process has held, in GiB."""
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _report(
    options: argparse.Namespace, result: RunResult, seconds: Mapping[str, float], peak: float
) -> dict[str, Any]:
    return {
        "model": options.kind.model,
        "layer": options.kind.name,
        "config": options.size,
        "dtype": options.dtype,
        "platform": options.platform,
        "batch": options.batch,
        "context": options.context,
        "tokens": options.tokens,
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
