"""Saving a run's tensors and replaying them: ``<dir>/in/<name>.pt``, ``<dir>/out/<name>.pt``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from golden.spec import ScalarSpec, TensorSpec


def save(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one file per tensor. ``directory`` is created."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, tensor in tensors.items():
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        # torch.save writes all the memory behind a view
        torch.save(tensor if whole else tensor.clone(), directory / f"{name}.pt")


def check_present(root: Path, inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Raises ValueError naming every file of a recorded run that is missing."""
    wanted = [("in", name) for name in inputs] + [("out", name) for name in outputs]
    paths = [root / folder / f"{name}.pt" for folder, name in wanted]
    if missing := [str(path) for path in paths if not path.is_file()]:
        raise ValueError(f"golden_data: missing {', '.join(missing)}; record a run with save_data=True")


def load(directory: Path, spec: TensorSpec) -> Tensor:
    """Read a recorded tensor. Raises ValueError if it is not of the spec's shape and dtype."""
    path = directory / f"{spec.name}.pt"
    tensor = torch.load(path, weights_only=True)
    wanted = f"{spec.dtype} {list(spec.shape)}"
    if not isinstance(tensor, Tensor):
        raise ValueError(f"golden_data: {path} holds a {type(tensor).__name__}, the spec says {wanted}")
    if (found := f"{tensor.dtype} {list(tensor.shape)}") != wanted:
        raise ValueError(f"golden_data: {path} holds {found}, the spec says {wanted}")
    return tensor.contiguous()


def check_scalar(directory: Path, spec: ScalarSpec) -> None:
    """Raises ValueError if the run was recorded with another value: the kernel was compiled for the
    spec's."""
    path = directory / f"{spec.name}.pt"
    recorded = torch.load(path, weights_only=True)
    if not isinstance(recorded, Tensor) or recorded.numel() != 1 or recorded.item() != spec.number:
        raise ValueError(f"golden_data: {path} holds {recorded!r}, the spec says {spec.number!r}")
