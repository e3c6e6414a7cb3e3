"""Generate tokens with a Hugging Face checkpoint, on any platform.

    python -m models.generate --model DIR --prompt-ids 1,2,3 --max-new-tokens 32 -p a2a3sim

Tokens are ids, in and out: there is no tokenizer here.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from models.common.checkpoint import SETTINGS, checkpoint_error, read_settings
from models.common.decoder import Decoder
from models.common.generation import check_prompts, generate
from models.common.programs import DecoderModel
from models.common.sampling import Sampling
from models.common.settings import Settings
from models.common.step_inputs import MAX_SPAN
from models.qwen3_5_27b.step import MODEL as QWEN3_5
from models.qwen3_14b.step import MODEL as QWEN3
from pypto_models.compile import DEFAULT_PLATFORM, resolve_platform
from pypto_models.errors import UserError

MODELS: tuple[DecoderModel, ...] = (QWEN3, QWEN3_5)
"""Every model that can decode."""

_GENERATION = "generation_config.json"
_TEXT = "text_config"


def model_of(directory: str | Path) -> DecoderModel:
    """The model whose checkpoint lies in `directory`, by the model_type of its config.json.

    Raises:
        UserError: if config.json cannot be read, or names none of `MODELS`.
    """
    kind = read_settings(directory).get("model_type")
    for model in MODELS:
        if kind in model.checkpoints.MODEL_TYPES:
            return model
    known = ", ".join(name for model in MODELS for name in model.checkpoints.MODEL_TYPES)
    raise checkpoint_error(
        Path(directory) / SETTINGS, f"model_type is {kind!r}", f"give a model of one of the types {known}"
    )


def token_ids(directory: str | Path, name: str) -> list[int]:
    """The ids under `name`, such as bos_token_id: one, several or none; generation_config.json comes first.

    Raises:
        UserError: if they are no ids, or a file cannot be read.
    """
    settings = read_settings(directory)
    nested = settings.get(_TEXT)
    places: list[tuple[str, Any]] = [(SETTINGS, settings), (SETTINGS, nested)]
    file = Path(directory) / _GENERATION
    if file.exists():
        try:
            places.insert(0, (_GENERATION, json.loads(file.read_text())))
        except (OSError, ValueError) as why:
            raise checkpoint_error(file, f"cannot be read ({why})", "mend it or remove it") from why
    for place, values in places:
        value = values.get(name) if isinstance(values, dict) else None
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            raise checkpoint_error(
                Path(directory) / place, f"{name} is {value!r}", "it must be an id or a list of ids"
            )
        return ids
    return []


def positions(directory: str | Path) -> int:
    """The longest sequence that the model was trained for.

    Raises:
        UserError: if config.json does not say.
    """
    settings = Settings(Path(directory) / SETTINGS, read_settings(directory))
    if isinstance(settings.values.get(_TEXT), dict):
        settings = settings.nested(_TEXT)
    return settings.count("max_position_embeddings")


# ---------------------------------------------------------------------------------------- command line
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m models.generate",
        description="Decode with a checkpoint: prints the ids that continue each prompt, a line each. "
        "Progress and speed go to stderr.",
        epilog="exit status: 0 if done, 1 for an error of the checkpoint or of the run, 2 for a mistake in "
        "the arguments",
    )
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR",
        help="a Hugging Face directory: config.json and safetensors")  # fmt: skip
    add("--prompt-ids", type=_prompts, default="", metavar="IDS",
        help="ids with commas between them; several prompts with semicolons between them; an empty prompt "
        "begins with the model's bos id (default: one empty prompt)")  # fmt: skip
    add("--max-new-tokens", type=_positive, default=32, metavar="N",
        help="most tokens for each prompt (default %(default)s)")  # fmt: skip
    add("-p", "--platform", default=DEFAULT_PLATFORM, metavar="NAME",
        help="target and backend, such as a5sim (default %(default)s)")  # fmt: skip
    add("--temperature", type=float, default=0.0, metavar="X",
        help="divides the logits to draw from; 0: the likeliest token (default %(default)s)")  # fmt: skip
    add("--top-k", type=int, default=0, metavar="N", help="draw from the N likeliest tokens; 0: from all")
    add("--top-p", type=float, default=1.0, metavar="X",
        help="draw from the likeliest tokens that together reach it (default %(default)s)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="N", help="of all draws (default %(default)s)")
    add("--stop-ids", type=_ids, metavar="IDS",
        help="ids that end an answer (default: the model's eos ids; '' for none)")  # fmt: skip
    add("--span", type=int, default=MAX_SPAN, choices=range(1, MAX_SPAN + 1), metavar="N",
        help="tokens of a prompt that one step reads, 1 to %(default)s (default %(default)s)")  # fmt: skip
    add("--page", type=_positive, default=128, metavar="N", help="tokens of a KV page (default %(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the result as JSON")
    return parser


def _ids(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of ids such as 1,2,3")
    return [int(part) for part in parts]


def _prompts(text: str) -> list[list[int]]:
    return [_ids(part) for part in text.split(";")]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive integer")
    return int(text)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options, checked; exits with 2 and a message if one is wrong."""
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        resolve_platform(options.platform)
    except UserError as error:
        parser.error(f"--platform: {error.message}; {error.fix}")
    try:
        options.sampling = Sampling(options.temperature, options.top_k, options.top_p)
    except UserError as error:
        parser.error(f"--{error.fields['name']}: {error.fields['why']}; {error.fix}".replace("_", "-"))
    if options.seed < 0:
        parser.error(f"--seed is {options.seed}; it must be 0 or more")
    if options.json is not None:
        try:  # before a run of minutes, not after it
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.open("a").close()
        except OSError as error:
            parser.error(f"cannot write {error.filename}: {error.strerror}")
    return options


@dataclass
class Clock:
    """Tokens and seconds of a run: the prefill ends with the step that gives the last first token."""

    load_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    generated: int = 0
    decoded: int = 0  # of those generated, the ones after the prefill

    def add(self, seconds: float, made: int, reading: bool) -> None:
        """Count a step that generated `made` tokens, `reading` if it was part of the prefill."""
        self.generated += made
        if reading:
            self.prefill_s += seconds
        else:
            self.decode_s += seconds
            self.decoded += made

    @property
    def tokens_per_second(self) -> float | None:
        """Of all sequences together, behind the prefill; None if there was nothing behind it."""
        return self.decoded / self.decode_s if self.decoded else None


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    options = _parse(argv)
    console = Console(stderr=True)
    try:
        report = _run(options, console)
    except UserError as error:
        print(f"models.generate: {error}", file=sys.stderr)
        return 1
    for answer in report["tokens"]:
        print(",".join(map(str, answer)))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


def _run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    model = model_of(options.model)
    prompts = _begun(options)
    longest = max(map(len, prompts)) + options.max_new_tokens - 1
    most = positions(options.model)
    pages = max(1, min(-(-longest // options.page), most // options.page))
    config = model.checkpoints.config_of(
        options.model, page=options.page, max_batch=len(prompts), max_seq=pages * options.page
    )
    check_prompts(config, prompts, options.max_new_tokens)  # before the weights are read
    stop = token_ids(options.model, "eos_token_id") if options.stop_ids is None else options.stop_ids

    clock, started = Clock(), time.perf_counter()
    with console.status("loading") as status:
        decoder = Decoder.from_checkpoint(
            model,
            options.model,
            config,
            status.update if console.is_terminal else None,
            platform=options.platform,
            span=options.span,
        )
    clock.load_s = time.perf_counter() - started
    answers = _timed(decoder, prompts, options, stop, clock, console)
    rate = clock.tokens_per_second
    speed = "" if rate is None else f", then {rate:.1f} tokens/s"
    console.print(
        f"{model.name} on {options.platform}: load {clock.load_s:.1f} s, compile and prefill "
        f"{clock.prefill_s:.1f} s{speed} ({clock.generated} tokens of {len(prompts)} sequences)",
        soft_wrap=True, highlight=False,
    )  # fmt: skip
    return {
        "model": model.name,
        "platform": options.platform,
        "dtype": config.dtype,
        "prompts": prompts,
        "tokens": answers,
        "max_new_tokens": options.max_new_tokens,
        "sampling": asdict(options.sampling),
        "seed": options.seed,
        "stop_ids": stop,
        "seconds": {"load": clock.load_s, "prefill": clock.prefill_s, "decode": clock.decode_s},
        "tokens_per_second": rate,
    }


def _begun(options: argparse.Namespace) -> list[list[int]]:
    """The prompts, empty ones with the bos id in their place."""
    if all(options.prompt_ids):
        return list(options.prompt_ids)
    bos = token_ids(options.model, "bos_token_id")
    if len(bos) != 1:
        raise checkpoint_error(
            options.model / SETTINGS, "bos_token_id is missing, and a prompt is empty",
            "give the first id of every prompt with --prompt-ids",
        )  # fmt: skip
    return [prompt or bos for prompt in options.prompt_ids]


def _timed(
    decoder: Decoder,
    prompts: list[list[int]],
    options: argparse.Namespace,
    stop: list[int],
    clock: Clock,
    console: Console,
) -> list[list[int]]:
    """`generate`, with a progress bar on a terminal; fills `clock`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
    )
    last = time.perf_counter()
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task("tokens", total=len(prompts) * options.max_new_tokens, rate="")

        def on_step(made: int, reading: bool) -> None:
            nonlocal last
            now = time.perf_counter()
            clock.add(now - last, made, reading)
            last = now
            rate = clock.tokens_per_second
            text = "prefill" if rate is None else f"{rate:.1f} tokens/s"
            bar.update(task, completed=clock.generated, rate=text)

        return generate(
            decoder,
            prompts,
            options.max_new_tokens,
            options.sampling,
            seed=options.seed,
            stop=stop,
            on_step=on_step,
        )


if __name__ == "__main__":
    sys.exit(main())
