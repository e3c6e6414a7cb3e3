"""What the GPU backends have in common that they cannot lower."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from pypto_models.errors import Diag, Span, user_error


class Refused(Exception):
    """Something has no lowering; :func:`named` makes the user's error of it."""

    def __init__(self, span: Span, what: str, why: str, fix: str) -> None:
        super().__init__(f"{what}: {why}")
        self.span, self.what, self.why, self.fix = span, what, why, fix


@contextmanager
def named(backend: str) -> Iterator[None]:
    """Raises the user's error, which names the backend, for a :class:`Refused`."""
    try:
        yield
    except Refused as r:
        raise user_error(Diag.BACKEND_OP, r.span, op=r.what, backend=backend, why=r.why, fix=r.fix) from None
