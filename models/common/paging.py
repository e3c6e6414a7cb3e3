"""Pages of the KV caches, dealt out to the sequences of a batch as they grow.

All layers share one table: token i of sequence s lies in slot `table[s, i // page] * page + i % page` of the
cache of every full-attention layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pypto_models.errors import NOWHERE, Diag, user_error

UNUSED = -1  # an entry of the table without a page


@dataclass
class PageTable:
    """The pages of `batch` sequences of up to `pages_per_seq` pages of `page` tokens each.

    Args:
        batch: sequences.
        pages_per_seq: entries of one row of the table.
        page: tokens in a page.
        pages: pages in all.

    Raises:
        UserError: if there is no page.
    """

    batch: int
    pages_per_seq: int
    page: int
    pages: int
    table: Tensor = field(init=False)
    _free: list[int] = field(init=False, repr=False)
    _held: list[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.pages < 1:
            raise user_error(
                Diag.ARGUMENT, NOWHERE, name="pages", why=f"{self.pages} pages hold nothing",
                fix="give 1 page or more",
            )  # fmt: skip
        self.table = torch.full((self.batch, self.pages_per_seq), UNUSED, dtype=torch.int32)
        self._free = list(range(self.pages - 1, -1, -1))
        self._held = [0] * self.batch

    @property
    def free(self) -> int:
        """Pages that no sequence holds."""
        return len(self._free)

    def reserve(self, lengths: Sequence[int]) -> None:
        """Give every sequence the pages for its first `lengths[s]` tokens; what it holds stays with it.

        Raises:
            UserError: if there are too few pages; then nothing has changed.
        """
        wanted = [max(-(-n // self.page), held) for n, held in zip(lengths, self._held, strict=True)]
        missing = sum(wanted) - sum(self._held)
        if missing > self.free:
            raise user_error(
                Diag.ARGUMENT, NOWHERE, name="tokens",
                why=f"this step needs {missing} more KV pages of {self.page} tokens; {self.free} of "
                f"{self.pages} are free",
                fix="end a sequence, or make more pages with pages=",
            )  # fmt: skip
        for s, count in enumerate(wanted):
            for i in range(self._held[s], count):
                self.table[s, i] = self._free.pop()
            self._held[s] = count

    def release(self, s: int) -> None:
        """Take back all pages of sequence `s`."""
        self._free.extend(self.table[s, : self._held[s]].flip(0).tolist())
        self.table[s] = UNUSED
        self._held[s] = 0

    def slots(self, s: int, first: int, end: int) -> list[int]:
        """The slots of tokens `first` to `end - 1` of sequence `s`, which must have their pages."""
        row = self.table[s].tolist()
        return [row[i // self.page] * self.page + i % self.page for i in range(first, end)]
