"""The command line of a model: compile a decode step, run it, and check every tensor that it changes."""

from __future__ import annotations

import argparse
import inspect
import json
import resource
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from golden import RunResult
from golden.power import load_cases, subjects_in
from golden.power_run import run_power
from golden.report import Log, progress_bar, say
from models.common.harness import LayerKind
from models.common.step_inputs import MAX_SPAN, row_counts
from models.common.step_time import Gpu, StepTime, time_step
from pypto_models.compile import DEFAULT_PLATFORM, Program, resolve_platform
from pypto_models.errors import UserError


def _parser(kinds: Sequence[LayerKind]) -> argparse.ArgumentParser:
    first = kinds[0]
    parser = argparse.ArgumentParser(
        prog="decode_layer.py",
        description=f"Compile one {first.title}, run it on a platform, and compare every tensor that it "
        "changes (hidden states, caches, states, final norm, logits) with torch.  On a GPU it is timed, too.",
        epilog="exit status: 0 if every comparison passed (or --compile-only), 1 if one did not, 2 for a "
        "mistake in the arguments, and where the platform's device is missing: SKIPPED",
    )
    add = parser.add_argument
    if len(kinds) > 1:
        add("--layer", choices=[k.name for k in kinds], default=first.name,
            help="kind of layer (default %(default)s)")  # fmt: skip
    add("-p", "--platform", default=DEFAULT_PLATFORM, metavar="NAME",
        help="a target and backend, such as a5sim, or a GPU: h200, gb10 (default %(default)s)")  # fmt: skip
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
    add("-o", "--output", type=Path, metavar="DIR",
        help="keep the program as a bundle: it runs where nothing can be compiled")  # fmt: skip
    add("--bundle", type=Path, metavar="DIR",
        help="compile nothing: load the bundle that the same command has written with -o")  # fmt: skip
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
    _check_platform(parser, options)
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
        for folder in (options.dump_passes, options.output):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"cannot write {error.filename}: {error.strerror}")
    options.size, options.config = options.config, config
    options.context = config.max_seq if options.max_seq else options.seq_len or "ragged"
    return options


def _check_platform(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """That the platform exists, and that its backend takes what it is asked for."""
    try:
        _, backend = resolve_platform(options.platform)
    except UserError as error:
        parser.error(f"--platform: {error.message}; {error.fix}")
    if options.bundle is not None and options.output is not None:
        parser.error("--bundle loads a bundle and -o writes one: leave one of them out")
    takes = inspect.signature(backend.build).parameters
    flags = {name: f"--{name.replace('_', '-')}" for name in ("schedule", "check_splits", "bundle")}
    flags |= {"checks": "--no-checks", "seed": "--schedule"}
    asked = asked_of_backend(options) | ({"bundle": options.output} if options.output is not None else {})
    for name in asked:
        if name not in takes:
            flag = flags[name] if options.output is None or name != "bundle" else "-o"
            other = "a GPU, such as -p h200" if name == "bundle" else "a simulator, such as -p h200sim"
            why = f"the backend {backend.name} has no such option"
            parser.error(f"{flag}: {why}; leave it out, or name {other}")


def asked_of_backend(options: argparse.Namespace) -> dict[str, Any]:
    """What the options ask of the backend; nothing where they leave it at its defaults."""
    asked: dict[str, Any] = {}
    if options.schedule != "program":
        asked |= {"schedule": options.schedule, "seed": options.seed}
    if options.check_splits:
        asked["check_splits"] = True
    if options.no_checks:
        asked["checks"] = False
    if options.bundle is not None:
        asked["bundle"] = str(options.bundle)
    return asked


@dataclass
class Outcome:
    """What became of a command: the comparison, the step's time on a GPU, and where the seconds went."""

    result: RunResult
    time: StepTime | None = None
    seconds: dict[str, float] = field(default_factory=dict)


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
        outcome = _compile_and_run(kind, options)
    except UserError as error:  # of the kernel, from the compiler or the simulator
        print(error, file=sys.stderr)
        return 1
    except _NotThisBundle as error:
        given = sys.argv[1:] if argv is None else argv
        print(f"{error}\nmake it with: {_making(script, given, options.bundle)}", file=sys.stderr)
        return 2
    total = time.perf_counter() - started
    peak = peak_gib()
    print(f"whole command {total:.1f}s, peak memory {peak:.1f} GiB")
    result = outcome.result
    if result.error:
        print(result.error)
    if options.json is not None:
        seconds = {**result.stage_times, **outcome.seconds, "whole command": total}
        report = _report(options, result, seconds, peak)
        report["time"] = None if outcome.time is None else outcome.time.report()
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if result.passed:
        return 0
    return 2 if result.status == "SKIPPED" and not result.reports else 1  # nothing ran, or nothing was shown


def _compile_and_run(kind: LayerKind, options: argparse.Namespace) -> Outcome:
    log = Log()
    program = _compiled(kind, options, log)
    if options.output is not None:
        program.save(options.output)
        say(f"wrote {options.output}")
    if options.compile_only:
        return Outcome(log.result("SKIPPED", passed=True, note="compile only"))
    if (why := program.cannot_run()) is not None:
        return Outcome(log.result("SKIPPED", f"compiled, but not run: {why}", note=why))
    with log.stage("make inputs"):
        tensors = kind.make_inputs(
            options.config,
            options.batch,
            options.context,
            tokens=options.tokens,
            span=_span(options),
            seed=options.seed,
            lm_head=options.lm_head,
        )
    result = kind.check(options.config, tensors, program)
    outcome = Outcome(result, seconds=dict(log.times))
    if result.passed and program.device != "cpu":
        with log.stage("time"):
            outcome.time = _timed(kind, options, program, tensors)
        outcome.seconds = dict(log.times)
        for line in outcome.time.lines():
            say(line)
    return outcome


def _span(options: argparse.Namespace) -> int:
    """The most rows of a sequence that the step is compiled for."""
    return MAX_SPAN if options.tokens == "ragged" else int(options.tokens)


class _NotThisBundle(Exception):
    """The bundle that was given is damaged, or of another program."""


def _compiled(kind: LayerKind, options: argparse.Namespace, log: Log) -> Program:
    counts, _ = row_counts(options.batch, options.tokens, _span(options), options.seed)
    with log.stage("compile" if options.bundle is None else "load the bundle"), progress_bar() as progress:
        try:
            program = kind.compile(
                options.config,
                options.platform,
                options.lm_head,
                rows=max(options.config.max_batch, sum(counts)),
                span=_span(options),
                dump_passes=options.dump_passes,
                backend_options=asked_of_backend(options),
                progress=progress,
            )
        except UserError:
            raise
        except ValueError as error:
            if options.bundle is None:
                raise
            raise _NotThisBundle(str(error)) from error
        for warning in program.warnings:
            say(f"  warning: {warning}")
    return program


def _making(script: Path, argv: Sequence[str], folder: Path) -> str:
    """The command that writes the bundle which this one asked for."""
    kept, rest = [], iter(argv)
    for argument in rest:
        if argument == "--bundle":
            next(rest)
        elif not argument.startswith("--bundle="):
            kept.append(argument)
    return shlex.join(["python", str(script), *kept, "--compile-only", "-o", str(folder)])


def _timed(
    kind: LayerKind, options: argparse.Namespace, program: Program, tensors: Mapping[str, Tensor]
) -> StepTime:
    arguments = {p.name: tensors[p.name] for p in program.params}
    moved = kind.bytes_of(options.config, tensors, options.lm_head)
    published = program.compiled.target.figures.read_bytes_per_s
    return time_step(program, arguments, moved, published, Gpu())


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
