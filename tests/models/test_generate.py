"""Answers of whole models: transformers' tokens and logits, sampling, and the command line."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from models.common.generation import generate
from models.common.sampling import Sampling, draw, probabilities
from models.generate import main, model_of
from models.qwen3_5_27b.step import MODEL as QWEN3_5
from models.qwen3_14b.step import MODEL as QWEN3
from pypto_models.errors import UserError
from tests.models import checkpoints
from tests.models.whole import PROMPTS, SIZES, Whole, greedy_answers, relative_error, saved

NEW = 32
FP32 = 1e-5  # of the largest logit; transformers' own noise over four layers is 1e-6 to 5e-6 of it

MODELS = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if "heads" in name else ()) for name in SIZES]
)

Load = Callable[[str, str], Whole]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    return cache(lambda name, dtype: saved(name, dtype, tmp_path_factory.mktemp(f"{name}_{dtype}")))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiles are small: threads cost more than they bring."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ------------------------------------------------------------------------------------- against transformers
@MODELS
def test_fp32_gives_transformers_tokens_and_logits(load: Load, name: str) -> None:
    """Four ragged prompts in one batch here, one by one there."""
    whole = load(name, "fp32")
    answers, logits = greedy_answers(whole.hf, PROMPTS, NEW)
    decoder = whole.decoder()
    assert generate(decoder, PROMPTS, NEW) == answers
    assert len({tuple(answer) for answer in answers}) == len(PROMPTS)
    for seen, expected in zip(decoder.seen, logits, strict=True):
        assert relative_error(torch.cat(seen)[-NEW:], expected) <= FP32


@MODELS
def test_bf16_is_as_close_to_fp32_as_transformers_is(load: Load, name: str) -> None:
    """Logits after the same tokens: as far from the fp32 model as transformers' bf16 model, times 2 at most
    and 1.25 in the RMS. Tokens: transformers' own, unless its two largest logits are closer than the noise.

    The noise of a comparison of two logits in two runs has 2 RMS errors; beyond 4 of these is no chance.
    """
    whole = load(name, "bf16")
    decoder = whole.decoder()
    answers = generate(decoder, PROMPTS, NEW)
    texts = [torch.tensor([[*p, *a[:-1]]]) for p, a in zip(PROMPTS, answers, strict=True)]
    wide = copy.deepcopy(whole.hf).float()
    with torch.no_grad():
        theirs = torch.cat([whole.hf(input_ids=t).logits[0, -NEW:] for t in texts]).double()
        exact = torch.cat([wide(input_ids=t).logits[0, -NEW:] for t in texts]).double()
    mine = torch.cat([torch.cat(seen)[-NEW:] for seen in decoder.seen]).double()
    error, allowed = mine - exact, theirs - exact
    rms = allowed.square().mean().sqrt()
    assert 0 < rms < 0.03
    assert error.abs().max() <= 2 * allowed.abs().max()
    assert error.square().mean().sqrt() <= 1.25 * rms

    noise = 8 * rms
    chosen = torch.tensor(sum(answers, []))
    assert torch.equal(chosen, mine.argmax(1))
    best, second = theirs.topk(2).values.T
    decided = best - second > noise
    assert decided.double().mean() > 0.5
    assert torch.equal(chosen[decided], theirs.argmax(1)[decided])
    assert (best - theirs.gather(1, chosen[:, None])[:, 0]).max() <= noise


def test_qwen3_next_and_tied_embeddings(tmp_path: Path) -> None:
    """The other forms in which a checkpoint may come."""
    config = replace(SIZES["qwen3_5"], dtype="fp32")
    hf = checkpoints.qwen3_next(config, tie_word_embeddings=True)
    checkpoints.saved(hf, tmp_path)
    whole = Whole(hf, tmp_path, model_of(tmp_path), config)
    answers, _ = greedy_answers(hf, PROMPTS[1:3], 8)
    assert generate(whole.decoder(2), PROMPTS[1:3], 8) == answers


# ------------------------------------------------------------------------------------------------ the loop
def test_answers_do_not_depend_on_span_or_company(load: Load) -> None:
    whole = load("qwen3_5", "fp32")
    together = generate(whole.decoder(), PROMPTS, 6)
    assert together == generate(whole.decoder(span=1), PROMPTS, 6)
    assert together == [generate(whole.decoder(1, span=3), [prompt], 6)[0] for prompt in PROMPTS]


def test_a_conversation_goes_on_where_it_ended(load: Load) -> None:
    whole = load("qwen3_5", "fp32")
    decoder = whole.decoder(1)
    first = generate(decoder, [PROMPTS[1]], 4)[0]
    second = generate(decoder, [[first[-1], 17]], 4)[0]  # the last token was not fed yet
    assert second == generate(whole.decoder(1), [[*PROMPTS[1], *first, 17]], 4)[0]


def test_stop_ids_end_an_answer(load: Load) -> None:
    whole = load("qwen3", "fp32")
    free = generate(whole.decoder(), PROMPTS, 8)
    stop = free[1][3]
    stopped = generate(whole.decoder(), PROMPTS, 8, stop={stop})
    assert stopped == [a[: a.index(stop) + 1] if stop in a else a for a in free]
    assert len(stopped[1]) <= 4


def test_draws_depend_on_seed_and_place_only(load: Load) -> None:
    whole = load("qwen3", "fp32")
    warm = Sampling(temperature=0.8, top_k=50, top_p=0.9)
    first = generate(whole.decoder(), PROMPTS, 6, warm, seed=1)
    assert first == generate(whole.decoder(span=2), PROMPTS, 6, warm, seed=1)
    assert first != generate(whole.decoder(), PROMPTS, 6, warm, seed=2)
    twice = generate(whole.decoder(2), [PROMPTS[1]] * 2, 6, warm, seed=1)
    assert twice[0] != twice[1]


@pytest.mark.parametrize(
    ("prompts", "count", "message"),
    [
        ([[1]], 1, r"'prompts': there are 1"),
        ([[1], []], 1, r"prompt 1 is empty\n  fix: begin with the model's bos token"),
        ([[1], [2, 1000]], 1, r"prompt 1 has token 1000\n  fix: give tokens in 0\.\.999"),
        ([[1], [2]], 0, r"'max_new_tokens': it is 0"),
        ([[1], [2, 3]], 128, r"prompt 1 and 128 new tokens need a context of 129; there is room for 128"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_step(
    load: Load, prompts: list[list[int]], count: int, message: str
) -> None:
    decoder = load("qwen3", "fp32").decoder(2)
    with pytest.raises(UserError, match=message):
        generate(decoder, prompts, count)
    assert decoder.lengths == (0, 0)


# ------------------------------------------------------------------------------------------------ sampling
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_k", [0, 1, 7, 5000])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-6])
def test_probabilities_are_those_of_transformers(temperature: float, top_k: int, top_p: float) -> None:
    logits = 3 * torch.randn(5, 1000, generator=torch.Generator().manual_seed(top_k))
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    mine = probabilities(logits, Sampling(temperature, top_k, top_p))
    assert torch.equal(mine > 0, scores > -torch.inf)
    torch.testing.assert_close(mine, scores.softmax(-1), rtol=1e-5, atol=1e-7)


def test_draws_have_their_probabilities() -> None:
    """20000 draws from 8 tokens: five standard deviations."""
    logits = torch.linspace(0, 3, 8)
    sampling = Sampling(temperature=1.5, top_k=6, top_p=0.95)
    expected = probabilities(logits, sampling)
    assert 2 <= int((expected == 0).sum()) < 6
    rng = torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([draw(logits, sampling, rng) for _ in range(20000)]), minlength=8)
    spread = (20000 * expected * (1 - expected)).sqrt()
    assert ((counts - 20000 * expected).abs() <= 5 * spread).all()
    assert draw(logits, Sampling(), rng) == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, r"'temperature': it is -1\.0"),
        ({"temperature": float("nan")}, r"'temperature': it is nan"),
        ({"top_k": -1}, r"'top_k': it is -1"),
        ({"top_p": 0.0}, r"'top_p': it is 0\.0\n  fix: use above 0 and at most 1"),
    ],
)
def test_sampling_out_of_range(values: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Sampling(**values)


# -------------------------------------------------------------------------------------------- command line
IDS = ";".join(",".join(map(str, prompt)) for prompt in PROMPTS)


def test_command_line_prints_the_answers(
    load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = load("qwen3", "fp32")
    expected = generate(whole.decoder(), PROMPTS, 5)
    file = tmp_path / "new" / "result.json"
    options = ["--page", "16", "--json", str(file)]
    assert (
        main(["--model", str(whole.directory), "--prompt-ids", IDS, "--max-new-tokens", "5", *options]) == 0
    )
    out, err = capsys.readouterr()
    assert out == "".join(",".join(map(str, answer)) + "\n" for answer in expected)
    assert "tokens/s (20 tokens of 4 sequences)" in err
    result = json.loads(file.read_text())
    assert result["tokens"] == expected
    assert result["prompts"] == [list(p) for p in PROMPTS]
    assert (result["model"], result["platform"], result["dtype"]) == ("qwen3_14b", "a2a3sim", "fp32")
    assert result["tokens_per_second"] > 0


def test_command_line_as_a_module(load: Load) -> None:
    whole = load("qwen3_5", "fp32")
    command = [sys.executable, "-m", "models.generate", "--model", str(whole.directory), "-p", "a5sim"]
    command += ["--prompt-ids", "5,6", "--max-new-tokens", "3"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = greedy_answers(whole.hf, [[5, 6]], 3)[0][0]
    assert done.stdout == ",".join(map(str, expected)) + "\n"


def test_command_line_takes_bos_and_eos_of_the_model(
    tmp_path: Path, load: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = load("qwen3", "fp32")
    for file in whole.directory.iterdir():
        (tmp_path / file.name).symlink_to(file)
    arguments = ["--model", str(tmp_path), "--max-new-tokens", "6"]
    assert main(arguments) == 1
    assert (
        "bos_token_id is missing, and a prompt is empty\n  fix: give the first id" in capsys.readouterr().err
    )
    free = greedy_answers(whole.hf, [[3]], 6)[0][0]
    settings = tmp_path / "generation_config.json"
    settings.unlink()
    settings.write_text(json.dumps({"bos_token_id": 3, "eos_token_id": [999, free[2]]}))
    assert main(arguments) == 0
    assert capsys.readouterr().out == ",".join(map(str, free[:3])) + "\n"
    assert main([*arguments, "--stop-ids", ""]) == 0
    assert capsys.readouterr().out == ",".join(map(str, free)) + "\n"
    settings.write_text(json.dumps({"bos_token_id": "<s>"}))
    assert main(arguments) == 1
    assert "generation_config.json: bos_token_id is '<s>'" in capsys.readouterr().err


def test_command_line_knows_the_models(tmp_path: Path, load: Load) -> None:
    for name, model in (("qwen3", QWEN3), ("qwen3_5", QWEN3_5)):
        assert model_of(load(name, "fp32").directory) is model
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    known = r"give a model of one of the types qwen3, qwen3_5, qwen3_5_text, qwen3_next"
    with pytest.raises(UserError, match=rf"config\.json: model_type is 'gpt2'\n  fix: {known}"):
        model_of(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt-ids", "1,1000"], r"prompt 0 has token 1000"),
        (["--prompt-ids", "1,2", "--max-new-tokens", "128"], "need a context of 129; there is room for 128"),
        (["--prompt-ids", "1", "--page", "256"], "max_position_embeddings is 128, below max_seq = 256"),
    ],
)
def test_what_the_model_cannot_do_ends_with_1(
    load: Load, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["--model", str(load("qwen3", "fp32").directory), *options]) == 1
    out, err = capsys.readouterr()
    assert message in err and "  fix: " in err and not out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt-ids", "1,x"], "'1,x' is no list of ids such as 1,2,3"),
        (["--max-new-tokens", "0"], "'0' is no positive integer"),
        (["-p", "abacus"], "--platform: unknown platform 'abacus'; known: "),
        (["--top-p", "1.5"], "--top-p: it is 1.5; use above 0 and at most 1"),
        (["--seed", "-1"], "--seed is -1; it must be 0 or more"),
        (["--json", f"{__file__}/result.json"], f"cannot write {__file__}: "),
    ],
)
def test_mistakes_in_the_arguments_end_with_2(
    capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["--model", "nowhere", *options])
    assert message in capsys.readouterr().err
