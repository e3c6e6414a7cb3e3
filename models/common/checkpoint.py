"""A Hugging Face directory as named tensors: every header checked at once, the data mapped when asked for.

The safetensors library (the extra `checkpoints`) reads the files. What is here holds the tensors against the
index and against a model, and gives everything that is wrong as one error with a file and a fix.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pypto_models.errors import NOWHERE, Diag, UserError, user_error

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SETTINGS = "config.json"

Progress = Callable[[str], None]
"""Told, in a line of text each, what is being read and what is left aside."""

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_LFS_POINTER = b"version https://git-lfs"
_SHOWN = 8  # problems spelled out in one error

_DOWNLOAD = "download the file again"
_SAVE = "save the model again with transformers' save_pretrained"


class Problem(NamedTuple):
    """One thing wrong with a checkpoint."""

    file: Path
    why: str
    fix: str


def checkpoint_error(file: Path, why: str, fix: str) -> UserError:
    """The error that everything wrong with a checkpoint gives: which file, what, and what to do."""
    return user_error(Diag.CHECKPOINT, NOWHERE, file=str(file), why=why, fix=fix)


@dataclass(frozen=True)
class Entry:
    """A stored tensor: `file` holds it, with this element type and shape."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Wanted:
    """What a tensor must be: its shape, and the element types that will do."""

    shape: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a directory by name.  Indexing maps one into memory; see `open_checkpoint`.

    Attributes:
        directory: where the files lie.
        source: the file that lists the tensors: the index, or the only data file.
        entries: what the files hold, by name.
        settings: config.json as it stands.
    """

    directory: Path
    source: Path
    entries: Mapping[str, Entry]
    settings: Mapping[str, Any] = field(repr=False)

    def __contains__(self, name: object) -> bool:
        return name in self.entries

    def __getitem__(self, name: str) -> Tensor:
        """The tensor in a private map of its file, read from the disk as it is touched.

        Dropping the tensor unmaps the file; writing to it does not change the file.

        Raises:
            UserError: if there is no such tensor, or its file changed since the checkpoint was opened.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise checkpoint_error(self.source, f"there is no tensor {name}", _SAVE)
        with _opened(entry.file, f"tensor {name} can no longer be read", "leave the files alone") as stored:
            tensor: Tensor = stored.get_tensor(name)
        if (tensor.dtype, tensor.shape) != (entry.dtype, entry.shape):
            raise checkpoint_error(entry.file, f"tensor {name} is not what it was at first", "open it again")
        return tensor

    def check(
        self,
        wanted: Mapping[str, Wanted],
        ignored: Mapping[str, str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Hold every tensor against `wanted`: none missing, none more, shapes and element types as they say.

        `ignored` maps patterns of names that a checkpoint may hold beyond those to the reason why they are
        left aside; `progress` is told of each pattern that matched.

        Raises:
            UserError: one, that names the first wrong tensor and its file, and the others in its notes.
        """
        problems = []
        for name, want in wanted.items():
            entry = self.entries.get(name)
            if entry is None:
                problems.append(Problem(self.source, f"tensor {name} is missing", _SAVE))
            elif entry.shape != want.shape:
                why = f"tensor {name} is {list(entry.shape)}, but {SETTINGS} makes it {list(want.shape)}"
                fix = f"give {SETTINGS} and the tensors of one model"
                problems.append(Problem(entry.file, why, fix))
            elif entry.dtype not in want.dtypes:
                types = " or ".join(map(_short, want.dtypes))
                why = f"tensor {name} holds {_short(entry.dtype)}, not {types}"
                fix = f"save the model in the element type that {SETTINGS} gives"
                problems.append(Problem(entry.file, why, fix))
        for pattern, why in (ignored or {}).items():
            count = sum(fnmatchcase(name, pattern) for name in self.entries if name not in wanted)
            if count and progress is not None:
                progress(f"ignored {pattern} ({count} tensors): {why}")
        for name in sorted(self.entries.keys() - wanted.keys()):
            if not any(fnmatchcase(name, pattern) for pattern in ignored or ()):
                why = f"tensor {name} is not part of the model that {SETTINGS} describes"
                fix = f"remove the tensor, or give the {SETTINGS} that belongs to it"
                problems.append(Problem(self.entries[name].file, why, fix))
        raise_first(problems)


def raise_first(problems: list[Problem]) -> None:
    """Raise one error for all `problems`: the first in full, some others as notes, the rest counted."""
    if not problems:
        return
    error = checkpoint_error(*problems[0])
    error.notes += [f"{problem.file}: {problem.why}" for problem in problems[1:_SHOWN]]
    if len(problems) > _SHOWN:
        error.notes.append(f"and {len(problems) - _SHOWN} more")
    raise error


def open_checkpoint(directory: str | Path, progress: Progress | None = None) -> Checkpoint:
    """Open a directory with config.json and model.safetensors, or its shards and their index.

    Reads the headers of all files, and no data. `Checkpoint.check` then holds the tensors against a model.

    Raises:
        UserError: if a file is missing, cut short or not what its name says, if index and files disagree, or
        if the extra `checkpoints` is not installed.
    """
    directory = Path(directory)
    settings = read_settings(directory)
    single, index = directory / SINGLE, directory / INDEX
    if single.is_file() and index.is_file():
        raise checkpoint_error(directory, f"holds both {SINGLE} and {INDEX}", "remove the one that is stale")
    if single.is_file():
        source, entries = single, read_header(single)
    elif index.is_file():
        source, entries = index, _read_shards(directory, read_index(index), progress)
    else:
        raise checkpoint_error(directory, f"holds neither {SINGLE} nor {INDEX}", _SAVE)
    return Checkpoint(directory, source, entries, settings)


def read_settings(directory: str | Path) -> dict[str, Any]:
    """config.json of a directory.

    Raises:
        UserError: if directory or file is missing, or it is not a JSON object.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise checkpoint_error(directory, "there is no such directory", "give the directory of a model")
    file = directory / SETTINGS
    if not file.is_file():
        raise checkpoint_error(file, "there is no such file", "copy it from the model's repository")
    return _json_object(file)


def read_index(file: Path) -> dict[str, str]:
    """Tensor name -> file name, from the index of a sharded checkpoint.

    Raises:
        UserError: if it is not an index, or names a file outside of its directory or one that is missing.
    """
    weight_map = _json_object(file).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise checkpoint_error(file, "there is no weight_map of tensor names to file names", _DOWNLOAD)
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise checkpoint_error(
                file, f"weight_map places tensor {name} in {shard!r}, not a file next to it", _DOWNLOAD
            )
        if not (file.parent / shard).is_file():
            raise checkpoint_error(
                file, f"weight_map places tensor {name} in {shard}, which is missing", f"download {shard} too"
            )
    return weight_map


def read_header(file: Path) -> dict[str, Entry]:
    """Tensor name -> element type and shape, from the header of a safetensors file.

    Raises:
        UserError: if the library refuses the file, or a tensor is of a type that no model here has.
    """
    with file.open("rb") as stream:
        if stream.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise checkpoint_error(file, "is a Git LFS pointer, not the data", "run git lfs pull")
    entries = {}
    with _opened(file, "is cut short or damaged", _DOWNLOAD) as stored:
        for name in stored.offset_keys():
            header = stored.get_slice(name)
            dtype = _DTYPES.get(header.get_dtype())
            if dtype is None:
                why = f"tensor {name} holds {header.get_dtype()}, an unknown element type"
                raise checkpoint_error(file, why, _SAVE)
            entries[name] = Entry(file, dtype, tuple(header.get_shape()))
    return entries


def _read_shards(
    directory: Path, weight_map: Mapping[str, str], progress: Progress | None
) -> dict[str, Entry]:
    """The entries of all shards; each tensor lies where the index says, and nowhere else."""
    shards = sorted(set(weight_map.values()))
    entries: dict[str, Entry] = {}
    problems = []
    for number, shard in enumerate(shards, 1):
        if progress is not None:
            progress(f"header of {shard} ({number} of {len(shards)})")
        for name, entry in read_header(directory / shard).items():
            entries[name] = entry
            place = weight_map.get(name)
            if place != shard:
                says = "does not list it" if place is None else f"places it in {place}"
                why = f"holds tensor {name}, but {INDEX} {says}"
                problems.append(Problem(entry.file, why, _DOWNLOAD))
    for name in weight_map.keys() - entries.keys():
        why = f"has no tensor {name}, which {INDEX} places there"
        problems.append(Problem(directory / weight_map[name], why, _DOWNLOAD))
    raise_first(sorted(problems))
    return entries


@contextmanager
def _opened(file: Path, failed: str, fix: str) -> Iterator[Any]:
    """`file`, opened by the safetensors library, whose errors become `failed`, with the fix `fix`."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as why:
        raise user_error(
            Diag.MISSING_EXTRA, NOWHERE, what="a checkpoint", package="safetensors", extra="checkpoints"
        ) from why
    try:
        with safe_open(file, framework="pt") as stored:
            yield stored
    except (SafetensorError, OSError) as why:
        raise checkpoint_error(file, f"{failed} ({why})", fix) from why


def _json_object(file: Path) -> dict[str, Any]:
    """The JSON object that `file` holds; a key that stands there twice is an error."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise ValueError(f"it lists {key} twice")
            found[key] = value
        return found

    try:
        value = json.loads(file.read_bytes(), object_pairs_hook=unique)
    except ValueError as why:
        raise checkpoint_error(file, f"is not JSON ({why})", _DOWNLOAD) from why
    if not isinstance(value, dict):
        raise checkpoint_error(file, "is not a JSON object", _DOWNLOAD)
    return value


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
