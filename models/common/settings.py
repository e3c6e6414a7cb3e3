"""config.json of a Hugging Face directory, read as strictly as the layers need it.

A size that is not there is an error: transformers' defaults for a missing one belong to another model. So is
a feature that the layers do not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.common import fp8
from models.common.checkpoint import SETTINGS, checkpoint_error, read_settings
from pypto_models.errors import UserError

_ELEMENT_TYPES = {"bfloat16": "bf16", "float32": "fp32"}
_ROPE = ("rope_theta", "partial_rotary_factor")
_REQUIRED = object()


@dataclass(frozen=True)
class Settings:
    """The object `values` of the config.json `file`; `parent` is the object around it, if there is one."""

    file: Path
    values: Mapping[str, Any]
    parent: Settings | None = None

    def error(self, why: str, fix: str) -> UserError:
        """The error of a value that will not do, to be raised."""
        return checkpoint_error(self.file, why, fix)

    def missing(self, name: str) -> UserError:
        """The error of a value that is not there, to be raised."""
        return self.error(f"{name} is missing", "use the config.json of the model's repository")

    def nested(self, name: str) -> Settings:
        """The object under `name`; this one is its parent.

        Raises:
            UserError: if it is missing or something else.
        """
        values = self._required(name)
        if not isinstance(values, dict):
            raise self.error(f"{name} is {values!r}", "it must be an object")
        return Settings(self.file, values, self)

    def items(self, name: str) -> list[Any]:
        """A list that is empty if missing.

        Raises:
            UserError: if it is something else.
        """
        value = self.values.get(name)
        if not isinstance(value, list | None):
            raise self.error(f"{name} is {value!r}", "it must be a list")
        return value or []

    def count(self, name: str) -> int:
        """A positive integer.

        Raises:
            UserError: if it is missing or something else.
        """
        value = self._required(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(f"{name} is {value!r}", "it must be a positive integer")
        return value

    def number(self, name: str) -> float:
        """A positive number.

        Raises:
            UserError: if it is missing or something else.
        """
        value = self._required(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not value > 0:
            raise self.error(f"{name} is {value!r}", "it must be a positive number")
        return float(value)

    def flag(self, name: str) -> bool:
        """A boolean that is false if missing; of a nested object, the parent's comes first.

        Raises:
            UserError: if it is something else.
        """
        value = self.values.get(name, False)
        if self.parent is not None:
            value = self.parent.values.get(name, value)
        if not isinstance(value, bool):
            raise self.error(f"{name} is {value!r}", "it must be true or false")
        return value

    def only(self, name: str, allowed: object, fix: str, *, default: object = _REQUIRED) -> None:
        """Refuse any value of `name` but `allowed`; a missing one is `default`, or an error without one.

        Raises:
            UserError: for another value.
        """
        value = self._required(name) if default is _REQUIRED else self.values.get(name, default)
        if value != allowed:
            raise self.error(f"{name} is {value!r}; the layers are written for {allowed!r}", fix)

    def element_type(self) -> str:
        """`"bf16"` or `"fp32"`, the type that config.json gives as dtype or, once, torch_dtype.

        Raises:
            UserError: if it names none or another.
        """
        keys = ("dtype", "torch_dtype")
        found = [s.values[key] for s in self._here_and_around() for key in keys if s.values.get(key)]
        if not found:
            raise self.missing("dtype")
        if (dtype := _ELEMENT_TYPES.get(str(found[0]))) is None:
            raise self.error(f"dtype is {found[0]!r}", f"use a checkpoint in {' or '.join(_ELEMENT_TYPES)}")
        return dtype

    def rope(self) -> Mapping[str, Any]:
        """The parameters of a plain rotary embedding: `rope_theta`, and `partial_rotary_factor` if given.

        Either they stand under rope_parameters, or at the top with a rope_scaling of null.

        Raises:
            UserError: if the frequencies are scaled (YaRN and the like), or theta is missing.
        """
        found = {key: self.values[key] for key in _ROPE if key in self.values}
        for name in ("rope_parameters", "rope_scaling"):
            nested = self.nested(name).values if self.values.get(name) else {}
            kind = nested.get("rope_type", nested.get("type", "default"))
            if kind not in ("default", "mrope"):  # mrope is plain where the three positions are one
                raise self.error(
                    f"{name} asks for {kind!r} frequencies; the layers rotate by plain ones",
                    f"remove {name}'s scaling: contexts then end at the length trained without it",
                )
            found |= {key: nested[key] for key in _ROPE if key in nested}
        return {key: Settings(self.file, found).number(key) for key in ("rope_theta", *found)}

    def check_quantisation(self) -> None:
        """Refuse weights that are quantised in any way but to FP8 in blocks of 128 x 128.

        Raises:
            UserError: for any other quantisation.
        """
        name, blocks = "quantization_config", [fp8.BLOCK, fp8.BLOCK]
        for s in self._here_and_around():
            if s.values.get(name) is None:
                continue
            given = s.nested(name).values
            method, block = given.get("quant_method"), given.get("weight_block_size")
            if method != "fp8" or block != blocks:
                raise self.error(
                    f"{name} is {method!r} in blocks of {block}",
                    f"use a bf16 checkpoint, or fp8 in blocks of {blocks}",
                )

    def check_length(self, max_seq: int) -> None:
        """Refuse a cache of `max_seq` tokens that is longer than the contexts that the model was made for.

        Raises:
            UserError: if it is longer.
        """
        longest = self.count("max_position_embeddings")
        if max_seq > longest:
            raise self.error(
                f"max_position_embeddings is {longest}, below max_seq = {max_seq}",
                f"use max_seq <= {longest}",
            )

    def _required(self, name: str) -> Any:
        if self.values.get(name) is None:
            raise self.missing(name)
        return self.values[name]

    def _here_and_around(self) -> list[Settings]:
        """This object and, behind it, its parent."""
        return [self] if self.parent is None else [self, self.parent]


def model_settings(directory: str | Path, model_types: Sequence[str]) -> Settings:
    """config.json of a model that is one of `model_types`.

    Raises:
        UserError: if it cannot be read, or is of another type.
    """
    settings = Settings(Path(directory) / SETTINGS, read_settings(directory))
    kind = settings.values.get("model_type")
    if kind not in model_types:
        raise settings.error(f"model_type is {kind!r}", f"give a model of type {' or '.join(model_types)}")
    return settings


@contextmanager
def checked(settings: Settings) -> Iterator[None]:
    """Turn the ValueError of sizes that do not fit together into an error that names config.json."""
    try:
        yield
    except UserError:
        raise
    except ValueError as why:
        raise settings.error(str(why), "give sizes that fit together") from why
