"""Prompts in, tokens out: the loop around decode steps.

Every sequence of the batch feeds what it has: up to `span` tokens of its prompt while there are any, then the
token that it generated last.  A step therefore mixes sequences that are still reading and such that write.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch

from models.common.config import DecoderConfig
from models.common.decoder import Decoder
from models.common.sampling import Sampling, draw
from models.common.step_inputs import MAX_ROWS
from pypto_models.errors import NOWHERE, Diag, UserError, user_error

OnStep = Callable[[int, bool], None]
"""Told after every step how many tokens it gave, and whether a prompt was still without answer before it."""


def generate(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    sampling: Sampling | None = None,
    *,
    seed: int = 0,
    stop: Collection[int] = (),
    on_step: OnStep | None = None,
) -> list[list[int]]:
    """Continue every prompt; the tokens of each, without the prompt, with the stop token if there was one.

    Args:
        decoder: as many sequences as prompts; what they hold already comes before the prompts.
        prompts: a token or more each.
        max_new_tokens: most tokens of each answer.
        sampling: by default the most likely token.
        seed: with a prompt's index decides its draws, whatever the others do.
        stop: tokens that end an answer.
        on_step: told of progress.

    Raises:
        UserError: if prompts do not fit the decoder, and as for `Decoder.decode_step`.
    """
    sampling = sampling or Sampling()
    check_prompts(decoder.config, prompts, max_new_tokens, decoder.lengths)
    waiting = [list(prompt) for prompt in prompts]
    answers: list[list[int]] = [[] for _ in prompts]
    seeds = torch.randint(2**62, (len(prompts),), generator=torch.Generator().manual_seed(seed))
    generators = [torch.Generator().manual_seed(own) for own in seeds.tolist()]
    while active := sum(map(bool, waiting)):
        reading = not all(answers)
        most = min(decoder.span, MAX_ROWS // active)
        fed = [own[:most] for own in waiting]
        step = decoder.decode_step(fed)
        made = 0
        for s, rows in enumerate(fed):
            waiting[s] = waiting[s][len(rows) :]
            if not rows or waiting[s]:
                continue
            greedy = sampling.greedy
            token = step.next_tokens[s][-1] if greedy else draw(step.logits[s][-1], sampling, generators[s])
            answers[s].append(token)
            made += 1
            if len(answers[s]) < max_new_tokens and token not in stop:
                waiting[s] = [token]
        if on_step is not None:
            on_step(made, reading)
    return answers


def check_prompts(
    config: DecoderConfig,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    lengths: Sequence[int] | None = None,
) -> None:
    """Whether a decoder of these sizes, whose sequences hold `lengths` tokens (none), can continue `prompts`.

    Raises:
        UserError: if not; before any step.
    """
    if max_new_tokens < 1:
        raise _refused("max_new_tokens", f"it is {max_new_tokens}", "ask for 1 token or more")
    if len(prompts) != config.max_batch:
        raise _refused(
            "prompts", f"there are {len(prompts)}", f"give one for each of {config.max_batch} sequences"
        )
    for s, (prompt, held) in enumerate(zip(prompts, lengths or [0] * len(prompts), strict=True)):
        if not prompt:
            raise _refused("prompts", f"prompt {s} is empty", "begin with the model's bos token")
        unknown = [token for token in prompt if not 0 <= token < config.vocab]
        if unknown:
            raise _refused(
                "prompts", f"prompt {s} has token {unknown[0]}", f"give tokens in 0..{config.vocab - 1}"
            )
        total = held + len(prompt) + max_new_tokens - 1  # the last token is not fed again
        if total > config.max_seq:
            raise _refused(
                "prompts",
                f"prompt {s} and {max_new_tokens} new tokens need a context of {total}; there is room for "
                f"{config.max_seq}",
                "ask for fewer tokens, or for a larger max_seq if the model knows so many positions",
            )


def _refused(name: str, why: str, fix: str) -> UserError:
    return user_error(Diag.ARGUMENT, NOWHERE, name=name, why=why, fix=fix)
