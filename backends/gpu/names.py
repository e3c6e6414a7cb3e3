"""What a kernel calls things: pointers, run-time extents and scalars that the launcher passes, tensors."""

from __future__ import annotations

from collections.abc import Mapping, Set

from pypto_models.errors import InternalError
from pypto_models.ir.expr import DimVar, Expr, Var
from pypto_models.ir.nodes import Arg

from .choices import ANYWHERE
from .tensors import View
from .text import Text


class Names:
    """``views`` are the tensors known outside; ``alias`` what a base tensor may be, if more than itself."""

    def __init__(self, views: Mapping[Var, View], alias: Mapping[Var, frozenset[Var]], text: Text) -> None:
        self.text = text
        self.views = dict(views)
        self.alias = alias
        self.names: dict[Expr, str] = {ANYWHERE: "0"}
        self.pointers: dict[Var, str] = {}  # base tensors in order of first use
        self.extents: dict[str, str] = {}  # run-time extents in order of first use
        self.captured: dict[Var, str] = {}  # scalars that the launcher passes
        self.chosen: dict[Var, str] = {}  # pointers of base tensors whose address is a variable
        self.carried: list[str] = []  # addresses of tensors that the loops around carry
        self.arrays: dict[Var, dict[int, str]] = {}  # elements of scalar arrays
        self.sources: set[Var] = set()  # tensors and views that the region reads
        self.written: set[Var] = set()  # base tensors that the kernel writes
        self.scattered: set[Var] = set()  # those of them that all threads of a block write
        self.loops = 0  # around what is being written

    def pointer(self, base: Var) -> str:
        if base in self.chosen:
            return self.chosen[base]
        if base not in self.pointers:
            self.pointers[base] = self.text.unique(base.name)
        return self.pointers[base]

    def read(self, x: Expr) -> str:
        """The name of a variable or a run-time extent; the launcher passes what no statement has made."""
        if isinstance(x, DimVar):
            if x.name not in self.extents:
                self.extents[x.name] = self.text.unique(x.name)
            return self.extents[x.name]
        if x not in self.names:
            if not isinstance(x, Var):
                raise InternalError(f"no name for {x!r}")
            self.captured[x] = self.text.unique(x.name)
            self.names[x] = self.passed(x, self.captured[x])
        return self.names[x]

    def passed(self, x: Var, name: str) -> str:
        """The text of a scalar that the launcher passes under a name."""
        return name

    def view_of(self, x: Arg) -> View:
        if not isinstance(x, Var) or x not in self.views:
            raise InternalError(f"{x!r} is no tensor of this kernel")
        return self.views[x]

    def clashes(self, base: Var, alone: bool) -> bool:
        """Whether a write must wait for what other threads of the block have done to a tensor before.

        With ``alone`` one thread writes, always the same.  Notes the write.
        """
        before = self.scattered if alone else self.written
        apart = not self.may_read(base) and not any(self.same(base, w) for w in before)
        self.written.add(base)
        if not alone:
            self.scattered.add(base)
        return not apart or (self.loops > 0 and not alone)  # the trip before has written, too

    def writes(self) -> tuple[frozenset[Var], frozenset[Var]]:
        """What has been written so far; see :meth:`since`."""
        return frozenset(self.written), frozenset(self.scattered)

    def since(self, *ends: tuple[frozenset[Var], frozenset[Var]]) -> None:
        """Go on as behind one of several places: a branch does not follow the other."""
        self.written = {v for written, _ in ends for v in written}
        self.scattered = {v for _, scattered in ends for v in scattered}

    def may_read(self, base: Var, sources: Set[Var] | None = None) -> bool:
        """Whether the region reads a tensor, as far as its views are known by now, or one of ``sources``."""
        among = self.sources if sources is None else sources
        return any(v not in self.views or self.same(self.views[v].base, base) for v in among)

    def same(self, a: Var, b: Var) -> bool:
        """Whether two base tensors may be one."""
        return not self.alias.get(a, frozenset((a,))).isdisjoint(self.alias.get(b, frozenset((b,))))
