"""What a kernel may do while the one before it still runs.

Kernels of a program follow each other by programmatic dependent launch: one starts when all blocks of the one
before have triggered (``griddepcontrol.launch_dependents``) and sees its results after
``griddepcontrol.wait``.  Two rules follow:

* A kernel waits before its first read of data that may still be written, and before any write.  What no
  kernel of the program writes is read ahead of that.  The launcher makes sure that no program before it is
  writing there (`Manifest.early`); so the first kernel reads only single elements ahead, which are indices:
  the tiles that it reads are what the program before has just made.
* A kernel that triggers after its wait has seen all earlier kernels complete.  The next may then read ahead
  of its own wait whatever this one does not write.

What a kernel itself writes it may read ahead as well, if nothing before it in the program writes it: it
writes after its wait, and what its other blocks write is none of what it reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pypto_models.ir.expr import Var
from pypto_models.ir.nodes import Let, Stmt

from ..gpu.scan import lets, sources
from ..gpu.tensors import View

TRIGGER = "cute.arch.griddepcontrol_launch_dependents()"
WAIT = "cute.arch.griddepcontrol_wait()"
BEFORE = "# trigger before the wait"  # places of the trigger: one of them is filled in, the other goes
AFTER = "# trigger after the wait"
LATE = "TRIGGER_AFTER_THE_WAIT"  # whether a stream does so


@dataclass(frozen=True)
class Ahead:
    """Tensors whose elements a kernel may read before it waits: ``constants``, which no kernel of the
    program writes, ``untouched``, which none before it writes, and with ``all_but`` everything else that is
    not in it.  Without ``tiles``, only single elements.

    ``scratch`` are tensors to which each block writes what it then reads (recompute.py): while only one
    kernel may still run, which writes the same or nothing there, it need not wait.
    """

    constants: frozenset[Var] = frozenset()
    all_but: frozenset[Var] | None = None
    tiles: bool = True
    untouched: frozenset[Var] = frozenset()
    scratch: frozenset[Var] = frozenset()

    def writes(self, x: Let, views: Mapping[Var, View]) -> bool:
        """Whether a statement may have its effect before the wait."""
        if x.op.name != "store" or self.all_but is None or not self.tiles:
            return False
        target = x.arg("target")
        return isinstance(target, Var) and target in views and views[target].base in self.scratch

    def allows(self, x: Let, base: Var) -> bool:
        known = (
            base in self.constants
            or base in self.untouched
            or (self.all_but is not None and base not in self.all_but)
        )
        return known and (self.tiles or x.op.name == "read_tensor")


NOTHING = Ahead()


def settled(s: Stmt, ahead: Ahead, views: Mapping[Var, View]) -> bool:
    """Whether a statement only reads what is there before the wait."""
    return all(
        (x.op.name not in EFFECTS or ahead.writes(x, views))
        and all(v in views and ahead.allows(x, views[v].base) for v in sources(x))
        for x in lets((s,))
    )


EFFECTS = ("store", "write_tensor", "create", "fill_tensor", "keep_address", "kept_tensor")


def placed(text: str, late: bool) -> str:
    """The text of a kernel with its trigger in one of the two places."""
    keep, drop = (AFTER, BEFORE) if late else (BEFORE, AFTER)
    lines = []
    for line in text.replace(LATE, str(late)).split("\n"):
        if line.strip() == keep:
            lines.append(line.replace(keep, TRIGGER))
        elif line.strip() != drop:
            lines.append(line)
    return "\n".join(lines)
