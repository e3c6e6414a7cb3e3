"""Emitted kernels on the CPU, by Triton's interpreter, one program after another.

Triton 3.9's interpreter keeps bf16 as bits, and does with them what no GPU does; `_repairs` says what is put
right while a kernel runs.  A kernel that reaches outside of its arguments ends the launch, where the
interpreter itself would read and write on.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import tempfile
import traceback
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..gpu.module import KernelSource
from .types import TYPES

_VARIABLE = "TRITON_INTERPRET"
_SCALARS = {"Int32": ("int32", np.int32), "Int64": ("int64", np.int64), "Float32": ("float32", np.float32)}
_COUNT = itertools.count()


def why_not() -> str | None:
    """Why no kernel can be interpreted in this process, or None.  Imports Triton only where it can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'pypto-models[triton]'"
    if os.environ.get(_VARIABLE) != "1":
        return f"Triton compiles in this process: set {_VARIABLE}=1 in the environment, and start it again"
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction

    if not isinstance(tl.sum, InterpretedFunction):
        return f"Triton was imported before {_VARIABLE}=1 was set: set it in the environment of the process"
    return None


class OutOfBounds(IndexError):
    """A kernel touches memory outside of its arguments."""


class Interpreted:
    """Kernels of an emitted source.  Raises RuntimeError where :func:`why_not` says why."""

    def __init__(self, source: str, kernels: Iterable[KernelSource]) -> None:
        if (why := why_not()) is not None:
            raise RuntimeError(why)
        # Triton reads the text of a function from its file, at its first launch.
        folder = Path(tempfile.mkdtemp(prefix="pypto-triton-"))
        weakref.finalize(self, shutil.rmtree, folder)
        name = f"interpreted_{next(_COUNT)}"
        path = folder / f"{name}.py"
        path.write_text(source)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.kinds = {k.name: [kind for _, kind in k.parameters] for k in kernels}

    def launch(
        self,
        kernel: str,
        grid: int,
        arguments: Sequence[torch.Tensor | int | float],
        reachable: Sequence[torch.Tensor] = (),
    ) -> None:
        """Run ``grid`` programs, in order.

        An argument of the kind pointer:<element type> is a contiguous tensor on the CPU; its memory is taken
        for elements of that type.  Scalars are of exactly their kind, as on a GPU.  ``reachable`` are tensors
        that the kernel may also touch: an earlier one may have kept their addresses for it.

        Raises ValueError for arguments of other kinds, OutOfBounds where a program touches memory outside of
        the tensors, Triton's InterpreterError for what else it cannot do.
        """
        kinds = self.kinds[kernel]
        if len(kinds) != len(arguments):
            raise ValueError(f"{kernel} has {len(kinds)} parameters, not {len(arguments)}")
        values = [_argument(kernel, kind, x) for kind, x in zip(kinds, arguments, strict=True)]
        memory = _Memory([*reachable, *(x for x in arguments if isinstance(x, torch.Tensor))])
        with _repaired(memory), np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)  # the greatest of none is NaN
            try:
                getattr(self.module, kernel)[(grid,)](*values)
            except Exception as error:
                shown = memory.outside or error
                shown.add_note(f"in {kernel}: {self._line(error)}")
                if memory.outside is not None:
                    raise memory.outside from None  # Triton wraps what it caught, once for each call
                raise

    def _line(self, error: BaseException) -> str:
        """The line of the source that an error comes from."""
        lines = ["?"]
        cause: BaseException | None = error
        while cause is not None:
            frames = traceback.extract_tb(cause.__traceback__)
            lines += [str(f.line) for f in frames if f.filename == self.module.__file__]
            cause = cause.__cause__
        return lines[-1]


def _argument(kernel: str, kind: str, value: torch.Tensor | int | float) -> Any:
    """A value as the interpreter keeps it: numpy's array with Triton's type."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    if kind in _SCALARS:
        if isinstance(value, torch.Tensor):
            raise ValueError(f"{kernel} has a parameter {kind} and is given a tensor")
        name, dtype = _SCALARS[kind]
        data, type_ = np.array([value], dtype), getattr(tl, name)
    else:
        if not isinstance(value, torch.Tensor) or value.device.type != "cpu" or not value.is_contiguous():
            raise ValueError(f"{kernel} has a parameter {kind}: give a contiguous tensor on the CPU")
        element = getattr(tl, TYPES[kind.removeprefix("pointer:")].removeprefix("tl."))
        data, type_ = np.array([value.data_ptr()], np.uint64), tl.pointer_type(element)
    return tl.tensor(TensorHandle(data, type_), type_)


class _Memory:
    """What kernels may touch.  ``outside`` is the first access to anything else."""

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        spans = sorted({(t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors})
        joined: list[list[int]] = []
        for start, end in spans:  # tensors may lie in one another
            if joined and start <= joined[-1][1]:
                joined[-1][1] = max(joined[-1][1], end)
            else:
                joined.append([start, end])
        self.starts, self.ends = np.array(joined or [[0, 0]], np.uint64).T
        self.outside: OutOfBounds | None = None

    def check(self, what: str, program: tuple[int, ...], pointers: Any, mask: Any) -> None:
        """Raises OutOfBounds; ``pointers`` are handles of the interpreter, ``mask`` is None for all."""
        addresses = pointers.data
        if mask is not None:
            addresses = addresses[np.broadcast_to(mask.data, addresses.shape)]
        if not addresses.size:
            return
        size = np.uint64(max(1, pointers.get_element_ty().primitive_bitwidth // 8))
        span = np.searchsorted(self.starts, addresses, side="right").astype(np.int64) - 1
        inside = (span >= 0) & (addresses + size <= self.ends[span])
        if not inside.all():
            wrong = np.count_nonzero(~inside)
            self.outside = OutOfBounds(
                f"program {program[0]} {what} {addresses.size} elements, {wrong} outside of its arguments"
            )
            raise self.outside


# ------------------------------------------------------------------------------------------- the interpreter
@contextmanager
def _repaired(memory: _Memory) -> Iterator[None]:
    """The interpreter with what it gets wrong put right."""
    from triton.runtime.interpreter import ReduceScanOpInterface, interpreter_builder

    check = ReduceScanOpInterface.check_tensor

    def check_tensor(self: Any, tensors: Any) -> None:
        for t in tensors:
            _no_bf16(t.handle)
        check(self, tensors)

    changes = _repairs(interpreter_builder, memory)
    vars(interpreter_builder).update(changes)
    ReduceScanOpInterface.check_tensor = check_tensor
    try:
        yield
    finally:
        ReduceScanOpInterface.check_tensor = check
        for name in changes:
            delattr(interpreter_builder, name)


def _repairs(builder: Any, memory: _Memory) -> dict[str, Callable[..., Any]]:
    """Methods in the place of the interpreter's.

    * Conversions to bf16 round to the nearest, ties to even; Triton's cut off.
    * Conversions to integers saturate, NaN is 0, and types of less than 32 bits take the low bits; numpy has
      its own ideas.
    * Products of bf16 are products of numbers, not of their bits.
    * Other arithmetic of bf16 is refused: emitted kernels compute in fp32, and Triton's would use the bits.
    * Every access to memory is checked.
    """
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    def cast_impl(src: Any, to: Any) -> Any:
        old, new = src.dtype.scalar, to.scalar
        if old == tl.bfloat16:
            src, old = TensorHandle(_widened(src.data), tl.float32), tl.float32
        if new == tl.bfloat16:
            return TensorHandle(_narrowed(src.data.astype(np.float32)), new)
        if old.is_floating() and new.is_int():
            if new.int_bitwidth < 32:
                return plain(cast_impl(src, tl.int32), to)
            return TensorHandle(_saturated(src.data, plain(src, to).data), new)
        return plain(src, to)

    def create_dot(a: Any, b: Any, *rest: Any) -> Any:
        wide = [
            TensorHandle(_widened(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)
        ]
        return dot(*wide, *rest)

    def without_bf16(method: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*operands: Any) -> Any:
            _no_bf16(*operands)
            return method(*operands)

        return checked

    def masked_load(pointers: Any, mask: Any, *rest: Any) -> Any:
        memory.check("loads", builder.grid_idx, pointers, mask)
        return load(pointers, mask, *rest)

    def masked_store(pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        memory.check("stores", builder.grid_idx, pointers, mask)
        return store(pointers, value, mask, *rest)

    def atomic(operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        memory.check("changes", builder.grid_idx, pointers, mask)
        return rmw(operation, pointers, value, mask, *rest)

    plain, dot, rmw = builder.cast_impl, builder.create_dot, builder.create_atomic_rmw
    load, store = builder.create_masked_load, builder.create_masked_store
    refusing = {n: without_bf16(getattr(builder, n)) for n in ("binary_op", "unary_op", "create_fma")}
    return refusing | {
        "cast_impl": cast_impl, "create_dot": create_dot, "create_atomic_rmw": atomic,
        "create_masked_load": masked_load, "create_masked_store": masked_store,
    }  # fmt: skip


def _no_bf16(*handles: Any) -> None:
    if any(hasattr(x, "dtype") and str(x.dtype.scalar) == "bf16" for x in handles):
        raise TypeError("arithmetic of bf16: convert to fp32 first")


def _widened(bits: np.ndarray) -> np.ndarray:
    """bf16 as fp32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _narrowed(values: np.ndarray) -> np.ndarray:
    """fp32 as the bits of bf16, as torch rounds."""
    return torch.tensor(values).to(torch.bfloat16).view(torch.uint16).numpy()


def _saturated(values: np.ndarray, converted: np.ndarray) -> np.ndarray:
    """``converted`` where the value is in the range of its type, the nearer end of it elsewhere."""
    ends = np.iinfo(converted.dtype)
    out = np.where(values >= float(ends.max), ends.max, converted)
    out = np.where(values <= float(ends.min), ends.min, out)
    return np.where(np.isnan(values), 0, out).astype(converted.dtype)
