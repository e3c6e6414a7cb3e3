"""What a call of a program is, worked out from its manifest and its arguments; nothing here needs a GPU."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from .extents import evaluate
from .manifest import Launch, Manifest, Parameter, Repeat

ALIGN = 256  # bytes of a workspace tensor
POINTER_ALIGN = 16  # bytes of an argument: kernels move that many at a time
P = TypeVar("P")
LIMIT = 2**31  # kernels count rows, columns and blocks in 32 bits


@dataclass(frozen=True)
class Bound:
    """Arguments that were checked, by name: run-time extents and values of scalars."""

    extents: Mapping[str, int]
    scalars: Mapping[str, int | float]


def bind(manifest: Manifest, args: Mapping[str, Any], device: torch.device) -> Bound:
    """Check the arguments of a call.

    Raises:
        ValueError: an argument is missing or unknown, has a wrong device, dtype, shape, layout, alignment or
            range, or shares memory with one that is written; the message names it and what is expected.
    """
    if unknown := sorted(set(args) - {p.name for p in manifest.parameters}):
        raise ValueError(f"{manifest.name} has no argument {unknown[0]}")
    found: dict[str, tuple[int, str]] = {}
    scalars: dict[str, int | float] = {}
    for p in manifest.parameters:
        if p.name not in args:
            raise ValueError(f"{manifest.name}: the argument {p.name} is missing")
        if p.kind != "tensor":
            scalars[p.name] = _number(p, args[p.name])
            continue
        t = args[p.name]
        _check_tensor(p, t, device)
        for axis, (text, size) in enumerate(zip(p.shape, t.shape, strict=True)):
            if not 1 <= size < LIMIT:
                raise ValueError(f"{p.name}: axis {axis} has {size} elements; 1 to {LIMIT - 1} are possible")
            if text.isidentifier():
                first = found.setdefault(text, (size, p.name))
                if first[0] != size:
                    raise ValueError(f"{text} is {first[0]} in {first[1]} and {size} in {p.name}")
    _check_apart(manifest, args)
    extents = {name: size for name, (size, _) in found.items()}
    for p in manifest.parameters:
        for axis, text in enumerate(p.shape):
            if not text.isidentifier() and (want := _size(text, extents)) != args[p.name].shape[axis]:
                meaning = text if text == str(want) else f"{text} = {want}"
                raise ValueError(
                    f"{p.name}: axis {axis} has {args[p.name].shape[axis]} elements instead of {meaning}"
                )
    return Bound(extents, scalars)


def _size(text: str, extents: Mapping[str, int]) -> int:
    try:
        return evaluate(text, extents)
    except KeyError as error:
        raise ValueError(f"{text}: no argument has the extent {error.args[0]} by itself") from error


def _check_apart(manifest: Manifest, args: Mapping[str, Any]) -> None:
    """What is written lies apart from every other argument: kernels run side by side."""
    spans = []
    for p in manifest.parameters:
        if p.kind == "tensor":
            start = args[p.name].data_ptr()
            spans.append((start, start + args[p.name].nbytes, p.name, p.direction != "in"))
    spans.sort()
    reach: tuple[int, str] = (0, "")  # the furthest end so far, and the furthest of what is written
    reach_written = reach
    for start, end, name, written in spans:
        end_before, other = reach if written else reach_written
        if start < end_before:
            raise ValueError(f"{name} and {other} share memory, and the program writes one: copy one of them")
        reach = max(reach, (end, name))
        if written:
            reach_written = max(reach_written, (end, name))


def _check_tensor(p: Parameter, t: Any, device: torch.device) -> None:
    if not isinstance(t, torch.Tensor):
        raise ValueError(f"{p.name} is {type(t).__name__}; give a tensor")
    if t.device != device:
        raise ValueError(f"{p.name} is on {t.device}; move it to {device}")
    if t.dtype != getattr(torch, p.dtype):
        raise ValueError(f"{p.name} has dtype {t.dtype}; it must be torch.{p.dtype}")
    if t.dim() != len(p.shape):
        raise ValueError(f"{p.name} has shape {list(t.shape)}; it must have {len(p.shape)} axes")
    if not t.is_contiguous():
        raise ValueError(f"{p.name} is not contiguous; call .contiguous()")
    if t.data_ptr() % POINTER_ALIGN:
        raise ValueError(
            f"{p.name} starts at an address that is no multiple of {POINTER_ALIGN} bytes; copy it"
        )


def _number(p: Parameter, value: Any) -> int | float:
    if isinstance(value, torch.Tensor):
        raise ValueError(f"{p.name} is a tensor; give a number, such as {p.name}.item() outside of a step")
    dtype = getattr(torch, p.dtype)
    if dtype.is_floating_point:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise ValueError(f"{p.name} is {type(value).__name__}; give a number")
        return float(value)
    try:
        value = operator.index(value)
    except TypeError:
        raise ValueError(f"{p.name} is {type(value).__name__}; give an integer") from None
    if dtype != torch.bool:
        info = torch.iinfo(dtype)
        low, high = max(info.min, -LIMIT), min(info.max, LIMIT - 1)
        if not low <= value <= high:
            raise ValueError(f"{p.name} is {value}; {low} to {high} are possible")
    elif value not in (0, 1):
        raise ValueError(f"{p.name} is {value}; give True or False")
    return int(value)


# -------------------------------------------------------------------------------------------- the launches
@dataclass(frozen=True)
class Slab:
    """One allocation for all tensors that the program makes: their offsets by name, and its size in bytes."""

    offsets: Mapping[str, int]
    bytes: int


def workspace(manifest: Manifest, extents: Mapping[str, int]) -> Slab:
    offsets, at = {}, 0
    for w in manifest.workspaces:
        offsets[w.name] = at
        count = math.prod(evaluate(x, extents) for x in w.shape)
        at += -(-count * getattr(torch, w.dtype).itemsize // ALIGN) * ALIGN
    return Slab(offsets, at)


def calls(
    manifest: Manifest, bound: Bound, pointers: Mapping[str, P]
) -> Iterator[tuple[Launch, int, list[P | int | float]]]:
    """The launches in order, each with its number of blocks and its argument values.

    ``pointers``: what stands for the arguments and the tensors of the workspace, such as their addresses.  A
    launch without blocks is left out.
    """
    names = {**bound.extents, **{n: v for n, v in bound.scalars.items() if isinstance(v, int)}}
    for launch, known in _trips(manifest.launches, names):
        grid = evaluate(launch.grid, known)
        if not grid < LIMIT:
            raise ValueError(f"{launch.kernel} has {grid} blocks; {LIMIT - 1} are possible")
        if grid < 1:
            continue
        yield launch, grid, [_value(kind, x, bound, known, pointers) for kind, x in launch.arguments]


def _trips(
    launches: tuple[Launch | Repeat, ...], known: Mapping[str, int]
) -> Iterator[tuple[Launch, Mapping[str, int]]]:
    """The launches of all trips of all loops, with the values of the loops' variables."""
    for x in launches:
        if isinstance(x, Launch):
            yield x, known
            continue
        start, stop, step = (evaluate(text, known) for text in (x.start, x.stop, x.step))
        if step == 0:
            raise ValueError(f"the loop over {x.var} has the step 0")
        for value in range(start, stop, step):
            yield from _trips(x.body, {**known, x.var: value})


def _value(
    kind: str, text: str, bound: Bound, known: Mapping[str, int], pointers: Mapping[str, P]
) -> P | int | float:
    if kind == "pointer":
        return pointers[text]
    if text in bound.scalars:
        return bound.scalars[text]
    return known[text] if text in known else evaluate(text, known)
