"""Directories that are broken, each in one way, and the one error that each gives."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from models.common.checkpoint import Wanted, open_checkpoint
from models.qwen3_14b.config import TINY
from models.qwen3_14b.weights import config_of, layer_weights, open_weights
from pypto_models.errors import UserError
from tests.models import checkpoints
from tests.models.checkpoints import INDEX, edit_file, edit_json, file_of

CONFIG = replace(TINY, layers=2)
LIMITS = {"page": CONFIG.page, "max_seq": CONFIG.max_seq}
NAME = "model.layers.1.self_attn.k_proj.weight"
NORM = "model.layers.0.post_attention_layernorm.weight"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in several shards.  Read-only: take `directory`."""
    return checkpoints.saved(checkpoints.qwen3(CONFIG), tmp_path_factory.mktemp("sound"), "500KB")


@pytest.fixture
def directory(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def header_edit(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the header of a safetensors file, leaving the data as it is."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


# ------------------------------------------------------------------------------------------------- sound
@pytest.mark.parametrize("shard", ["50GB", "500KB"])
def test_every_tensor_is_what_the_model_holds(tmp_path: Path, shard: str) -> None:
    model = checkpoints.qwen3(CONFIG, seed=3)
    checkpoint, want = open_checkpoint(checkpoints.saved(model, tmp_path, shard)), model.state_dict()
    assert checkpoint.entries.keys() == want.keys()
    assert all(torch.equal(checkpoint[name], value) for name, value in want.items())
    assert all(checkpoint[name].dtype == value.dtype for name, value in want.items())


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.float8_e4m3fn, torch.int64, torch.uint8, torch.bool]
)
def test_element_types_scalars_and_empty_tensors(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.randint(0, 2, (3, 5), generator=torch.Generator().manual_seed(0)).to(dtype)
    state = {"matrix": values, "one": values[1, 1].clone(), "none": values[:, :0].clone()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    checkpoint = open_checkpoint(tmp_path)
    for name, want in state.items():
        assert checkpoint[name].dtype == dtype
        assert checkpoint[name].shape == want.shape
        assert torch.equal(checkpoint[name].double(), want.double())


def test_unaligned_data_is_read_too(tmp_path: Path) -> None:
    """The format does not ask for alignment: here fp32 starts at an odd byte."""
    want = torch.arange(6, dtype=torch.float32)
    header = json.dumps({"x": {"dtype": "F32", "shape": [6], "data_offsets": [0, 24]}}).encode()
    header += b" " * (1 - len(header) % 2)
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + want.numpy().tobytes())
    (tmp_path / "config.json").write_text("{}")
    assert torch.equal(open_checkpoint(tmp_path)["x"], want)


def test_writing_to_a_tensor_leaves_the_file_alone(directory: Path) -> None:
    checkpoint = open_checkpoint(directory)
    before = checkpoint[NAME].clone()
    checkpoint[NAME].zero_()
    assert torch.equal(checkpoint[NAME], before)


def test_a_file_is_mapped_only_while_its_tensor_is_held(directory: Path) -> None:
    """So a layer that is loaded, and one stored tensor, are all that ever takes memory."""

    def mapped() -> set[str]:
        """The files of this directory in the address space."""
        lines = Path("/proc/self/maps").read_text().splitlines()
        return {line.rsplit("/", 1)[1] for line in lines if f" {directory}/" in line}

    checkpoint = open_weights(directory, CONFIG)
    assert mapped() == set()
    held = checkpoint[NAME]
    assert mapped() == {file_of(directory, NAME).name}
    del held
    assert mapped() == set()
    weights = layer_weights(checkpoint, CONFIG, 1)
    assert mapped() == set()
    k = weights["w_qkv"][CONFIG.q_width : CONFIG.q_width + CONFIG.kv_width]
    assert torch.equal(k, checkpoint[NAME])


def test_progress_names_each_shard(directory: Path) -> None:
    lines: list[str] = []
    open_checkpoint(directory, lines.append)
    shards = sorted(file.name for file in directory.glob("*.safetensors"))
    want = [f"header of {shard} ({i} of {len(shards)})" for i, shard in enumerate(shards, 1)]
    assert lines == want


def test_without_the_extra_models_import_and_a_checkpoint_names_it(directory: Path) -> None:
    code = (
        "import sys; sys.modules.update(safetensors=None, transformers=None)\n"
        "import models.qwen3_14b.weights, models.qwen3_5_27b.weights\n"
        "print('imported', flush=True)\n"
        f"models.qwen3_14b.weights.open_checkpoint({str(directory)!r})"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.stdout == "imported\n", ran.stderr
    assert "a checkpoint needs safetensors, which is not installed" in ran.stderr
    assert "fix: pip install 'pypto-models[checkpoints]'" in ran.stderr


# ------------------------------------------------------------------------------------- wrong tensors
def test_missing(directory: Path) -> None:
    edit_file(file_of(directory, NAME), remove=NAME)
    edit_json(directory / INDEX, "weight_map", NAME, value=None)
    refused(directory, rf"{INDEX}: tensor {NAME} is missing", "fix: save the model again")


def test_extra(directory: Path) -> None:
    file = file_of(directory, NAME)
    bias = NAME.replace("weight", "bias")
    edit_file(file, **{bias: torch.zeros(4)})
    edit_json(directory / INDEX, "weight_map", bias, value=file.name)
    refused(directory, f"{file.name}: tensor {bias} is not part of the model", "fix: remove the tensor")


def test_misshaped(directory: Path) -> None:
    file = file_of(directory, NAME)
    edit_file(file, **{NAME: torch.zeros(256, 128, dtype=torch.bfloat16)})  # as many elements as it should
    message = rf"{file.name}: tensor {NAME} is \[256, 128\], but config.json makes it \[128, 256\]"
    refused(directory, message, "fix: give config.json and the tensors of one model")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.int16])
def test_mistyped(directory: Path, dtype: torch.dtype) -> None:
    file = file_of(directory, NAME)
    edit_file(file, **{NAME: torch.zeros(128, 256, dtype=dtype)})
    name = str(dtype).removeprefix("torch.")
    refused(directory, f"{file.name}: tensor {NAME} holds {name}, not bfloat16 or float8_e4m3fn", "fix: save")


def test_a_norm_may_be_fp32_and_nothing_else(directory: Path) -> None:
    file = file_of(directory, NORM)
    value = torch.linspace(0.5, 1.5, CONFIG.hidden)  # no bf16 values
    edit_file(file, **{NORM: value})
    checkpoint = open_weights(directory, CONFIG)
    assert torch.equal(layer_weights(checkpoint, CONFIG, 0)["post_norm"], value[None])
    edit_file(file, **{NORM: value.half()})
    refused(directory, f"{file.name}: tensor {NORM} holds float16, not bfloat16 or float32", "fix: save")


def test_all_wrong_tensors_stand_in_one_error(directory: Path) -> None:
    file = file_of(directory, NAME)
    edit_file(file, **{NAME: torch.zeros(3)})
    edit_file(file_of(directory, NORM), **{NORM: torch.zeros(5)})
    error = refused(directory, f"tensor {NORM} is .5.", f"note: .*{file.name}: tensor {NAME} is .3.")
    assert len(error.notes) == 1


def test_many_wrong_tensors_are_counted(directory: Path) -> None:
    config = replace(config_of(directory, **LIMITS), layers=4)
    with pytest.raises(UserError, match=r"layers\.2\.\S+ is missing[\s\S]*note: and 14 more$"):
        open_weights(directory, config)


def test_indexing_names_the_tensor_that_is_not_there(directory: Path) -> None:
    with pytest.raises(UserError, match=rf"{INDEX}: there is no tensor nothing"):
        open_checkpoint(directory)["nothing"]


def test_check_by_hand(directory: Path) -> None:
    checkpoint, lines = open_checkpoint(directory), []
    wanted = {NAME: Wanted((128, 256), (torch.bfloat16,))}
    checkpoint.check(wanted, {"*": "not of interest", "mtp.*": "absent"}, lines.append)
    assert lines == [f"ignored * ({len(checkpoint.entries) - 1} tensors): not of interest"]
    with pytest.raises(UserError, match="is not part of the model"):
        checkpoint.check(wanted, {"model.*": "not of interest"})


# ------------------------------------------------------------------------------------------ wrong files
def cut_file(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


@pytest.mark.parametrize(
    ("size", "why"),
    [
        (-1, "file not fully covered"),
        (0, "header too small"),
        (5, "header too small"),
        (8, "invalid header length"),
        (100, "invalid header length"),
    ],
)
def test_truncated(directory: Path, size: int, why: str) -> None:
    file = file_of(directory, NAME)
    cut_file(file, size)
    damaged(directory, file, why)


def test_bytes_after_the_last_tensor(directory: Path) -> None:
    file = file_of(directory, NAME)
    file.write_bytes(file.read_bytes() + b"more")
    damaged(directory, file, "file not fully covered")


def test_git_lfs_pointer(directory: Path) -> None:
    file = file_of(directory, NAME)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(directory, f"{file.name}: is a Git LFS pointer", "fix: run git lfs pull")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"\xff\xfe{}", "invalid UTF-8 in header"),
        (b"[]", "invalid JSON in header"),
        (b'{"a": 1, "a": 2}', "invalid JSON in header"),
    ],
)
def test_broken_header(directory: Path, text: bytes, why: str) -> None:
    file = file_of(directory, NAME)
    file.write_bytes(len(text).to_bytes(8, "little") + text)
    damaged(directory, file, why)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("dtype", "F5", "unknown variant `F5`"),
        ("dtype", None, "invalid type: null"),
        ("shape", [128, -256], "invalid value: integer `-256`"),
        ("shape", [128, 255], "invalid shape, data type, or offset"),
        ("data_offsets", [0], "invalid length 1"),
    ],
)
def test_broken_entry(directory: Path, key: str, value: object, why: str) -> None:
    file = file_of(directory, NAME)
    header_edit(file, lambda header: header[NAME].update({key: value}))
    damaged(directory, file, why)


def test_an_element_type_that_no_model_has(directory: Path) -> None:
    file = file_of(directory, NAME)
    header_edit(file, lambda header: header[NAME].update(dtype="U16"))
    message = f"{file.name}: tensor {NAME} holds U16, an unknown element type"
    refused(directory, message, "fix: save the model again")


@pytest.mark.parametrize("shift", [2, -2])
def test_tensors_that_do_not_tile_the_data(directory: Path, shift: int) -> None:
    file = file_of(directory, NAME)
    moved = []

    def move(header: dict[str, Any]) -> None:
        del header["__metadata__"]
        last = max(header, key=lambda name: header[name]["data_offsets"])
        header[last]["data_offsets"] = [at + shift for at in header[last]["data_offsets"]]
        moved.append(last)

    header_edit(file, move)
    damaged(directory, file, f"invalid offset for tensor `{moved[0]}`")


def test_cut_short_after_it_was_opened(directory: Path) -> None:
    checkpoint = open_checkpoint(directory)
    file = file_of(directory, NAME)
    cut_file(file, 8)
    with pytest.raises(UserError, match=rf"{file.name}: tensor {NAME} can no longer be read"):
        checkpoint[NAME]
    file.unlink()
    with pytest.raises(UserError, match=rf"{file.name}: tensor {NAME} can no longer be read"):
        checkpoint[NAME]


@pytest.mark.parametrize("value", [torch.zeros(1, 256, dtype=torch.bfloat16), torch.zeros(128, 256)])
def test_another_tensor_after_it_was_opened(directory: Path, value: Tensor) -> None:
    checkpoint = open_weights(directory, CONFIG)
    file = file_of(directory, NAME)
    edit_file(file, **{NAME: value})
    with pytest.raises(UserError, match=rf"{file.name}: tensor {NAME} is not what it was at first"):
        layer_weights(checkpoint, CONFIG, 1)


# ------------------------------------------------------------------------------------------ wrong index
def test_shard_is_missing(directory: Path) -> None:
    file = file_of(directory, NAME)
    file.unlink()
    refused(
        directory, rf"{INDEX}: weight_map places tensor \S+ in {file.name}, which is missing", "fix: down"
    )


def test_index_places_a_tensor_in_another_shard(directory: Path) -> None:
    file, other = file_of(directory, NAME), file_of(directory, NORM)
    edit_json(directory / INDEX, "weight_map", NAME, value=other.name)
    error = refused(
        directory, f"{file.name}: holds tensor {NAME}, but {INDEX} places it in {other.name}", "fix"
    )
    assert not error.notes  # one mistake, said once


def test_index_does_not_list_a_tensor(directory: Path) -> None:
    file = file_of(directory, NAME)
    edit_json(directory / INDEX, "weight_map", NAME, value=None)
    refused(directory, f"{file.name}: holds tensor {NAME}, but {INDEX} does not list it", "fix: download")


def test_index_lists_a_tensor_that_is_not_there(directory: Path) -> None:
    file = file_of(directory, NAME)
    edit_file(file, remove=NAME)
    refused(directory, f"{file.name}: has no tensor {NAME}, which {INDEX} places there", "fix: download")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not a JSON object"),
        ("{}", "there is no weight_map"),
        ('{"weight_map": []}', "there is no weight_map"),
        ('{"weight_map": {"x": 1}}', "weight_map places tensor x in 1, not a file next to it"),
        ('{"weight_map": {"x": "../y"}}', "weight_map places tensor x in '../y', not a file next to it"),
        ('{"weight_map": {"x": "a", "x": "b"}}', "is not JSON .it lists x twice"),
    ],
)
def test_broken_index(directory: Path, text: str, message: str) -> None:
    (directory / INDEX).write_text(text)
    refused(directory, f"{INDEX}: {message}", "fix: download the file again")


# -------------------------------------------------------------------------------------- wrong directory
def test_single_file_next_to_an_index(directory: Path) -> None:
    save_file({"x": torch.zeros(1)}, directory / "model.safetensors")
    refused(directory, f"holds both model.safetensors and {INDEX}", "fix: remove the one that is stale")


def test_no_weights(directory: Path) -> None:
    (directory / INDEX).unlink()
    refused(directory, f"holds neither model.safetensors nor {INDEX}", "fix: save the model again")


def test_no_settings(directory: Path) -> None:
    (directory / "config.json").unlink()
    refused(directory, r"config\.json: there is no such file", "fix: copy it from the model's repository")


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("3", "is not a JSON object")])
def test_broken_settings(directory: Path, text: str, message: str) -> None:
    (directory / "config.json").write_text(text)
    refused(directory, rf"config\.json: {message}", "fix: download the file again")


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: there is no such directory"):
        open_checkpoint(tmp_path / "nowhere")


def damaged(directory: Path, file: Path, why: str) -> None:
    """The library refuses `file`; its words are passed on, with the file and a fix."""
    message = rf"{file.name}: is cut short or damaged \([^\n]*{re.escape(why)}"
    refused(directory, message, "fix: download the file again")


def refused(directory: Path, message: str, rest: str) -> UserError:
    """Opening fails before anything is loaded, with one error of this message and, behind it, `rest`."""
    with pytest.raises(UserError, match=message) as caught:
        open_weights(directory, CONFIG)
    text = str(caught.value)
    assert text.startswith("error[checkpoint]: ")
    assert text.count("error[") == 1
    assert text.count("  fix: ") == 1
    assert re.search(rest, text), text
    return caught.value
