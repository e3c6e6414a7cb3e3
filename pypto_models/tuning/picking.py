"""The best variant of every part, written into a tiling file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from ..errors import NOWHERE, Diag, UserError, user_error
from ..schedule.overrides import overrides
from .records import Part, Plan, Result, Results, Value, Variant
from .running import outcome

NOISE = 0.003  # of the time: what is not faster than the default by more than this is no gain


@dataclass(frozen=True)
class Pick:
    """The choice for a part, the one after it, and what the compiler does by itself."""

    part: Part
    best: tuple[Variant, Result]
    second: tuple[Variant, Result] | None
    default: Result | None

    @property
    def notes(self) -> tuple[str, ...]:
        """Comments: figure, default, device and date, then the runner-up."""
        r = self.best[1]
        by_itself = f" of {self.default.us:.2f} by default" if self.default is not None else ""
        share = self.part.bytes / r.us * 1e-6
        first = f"{r.us:.2f} us{by_itself}, {share:.2f} TB/s, {r.device}, {r.date}"
        if self.second is None:
            return (first,)
        values = ", ".join(f"{k} {v}" for k, v in self.second[0].values.items())
        return (first, f"next: {self.second[1].us:.2f} us with {values}")


def picks(plan: Plan, results: Results) -> tuple[Pick, ...]:
    """The fastest right variant of each part; the default where none is faster by more than the noise.

    Raises:
        UserError: a part has no variant that is right, or none that was measured.
    """
    found = []
    for part, pairs in outcome(plan, results):
        right = [p for p in pairs if p[1].status == "ok"]
        if not right:
            tried = "; ".join(f"{v.name} {r.status}: {r.why}" for v, r in pairs[:3])
            why = f"none of its variants is right ({tried})" if pairs else "none of its variants is measured"
            fix = "run pypto-models tune run" if not pairs else "the kernels are wrong: see results.jsonl"
            raise user_error(Diag.ARGUMENT, None, name=part.name, why=why, fix=fix)
        default = next((p for p in right if p[0].default), None)
        best = right[0]
        if default is not None and best[1].us > default[1].us * (1 - NOISE):
            best = default
        second = next((p for p in right if p is not best), None)
        found.append(Pick(part, best, second, default[1] if default is not None else None))
    return tuple(found)


# ------------------------------------------------------------------------------------------- the file
def with_picks(text: str, chosen: tuple[Pick, ...], file: str = "the tiling file") -> str:
    """A tiling file with what was chosen; the rest of it stays as it stands.

    Raises:
        UserError: the file has ``source:`` or ``schedule:`` in a form that is not one line for each name.
    """
    lines = text.splitlines()
    for pick in chosen:
        change = _with_constants if pick.part.kind == "source" else _with_schedule
        lines = change(lines, pick, file)
    new = "\n".join(lines) + "\n"
    _check(new, chosen, file)
    return new


def write(path: Path, chosen: tuple[Pick, ...]) -> None:
    """Write the choices into a tiling file, which is made if it is not there; raises as `with_picks`."""
    text = path.read_text() if path.exists() else ""
    new = with_picks(text, chosen, path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(new)


def _block(lines: list[str], name: str, file: str) -> tuple[int, int]:
    """Lines of a top-level part, without its head; it is added at the end if it is not there."""
    head = next((i for i, x in enumerate(lines) if x.startswith(f"{name}:")), None)
    if head is not None and not re.match(rf"{name}:\s*(#.*)?$", lines[head]):
        raise _unfit(file, f"line {head + 1} holds all of {name}:")
    if head is None:
        lines.append(f"{name}:")
        return len(lines), len(lines)
    end = next((i for i in range(head + 1, len(lines)) if re.match(r"\S", lines[i])), len(lines))
    while end > head + 1 and not lines[end - 1].strip():
        end -= 1
    return head + 1, end


def _with_constants(lines: list[str], pick: Pick, file: str) -> list[str]:
    lines = list(lines)
    names = list(pick.best[0].values)
    start, end = _block(lines, "source", file)
    kept = []
    for x in lines[start:end]:
        if x.lstrip().startswith(f"# {pick.part.name}: "):
            continue  # what an earlier choice said
        if not any(re.match(rf"  {name}:", x) for name in names):
            kept.append(x)
    kept += [f"  # {pick.part.name}: {note}" for note in pick.notes]
    kept += [f"  {name}: {value}" for name, value in pick.best[0].values.items()]
    return [*lines[:start], *kept, *lines[end:]]


def _with_schedule(lines: list[str], pick: Pick, file: str) -> list[str]:
    lines = list(lines)
    start, end = _block(lines, "schedule", file)
    kept: list[str] = []
    own = False
    for x in lines[start:end]:
        if re.match(r"  [^\s#]", x):
            own = x.strip().split(":")[0] == pick.part.name
        comment = x.lstrip().startswith(f"# {pick.part.name}: ")
        if not comment and not (own and not x.lstrip().startswith("#")):
            kept.append(x)
    values = ", ".join(f"{k}: {v}" for k, v in _fixed(pick).items())
    kept += [f"  # {pick.part.name}: {note}" for note in pick.notes]
    kept.append(f"  {pick.part.name}: {{{values}}}")
    return [*lines[:start], *kept, *lines[end:]]


def _fixed(pick: Pick) -> dict[str, Value]:
    return {**pick.part.sizes, **pick.best[0].values}


def _check(text: str, chosen: tuple[Pick, ...], file: str) -> None:
    """What was written must read as it was meant."""
    try:
        data = yaml.safe_load(text) or {}
        wrong = next(_unread(data, chosen), None)
    except (yaml.YAMLError, TypeError, AttributeError) as error:
        wrong = str(error).splitlines()[0]
    if wrong is not None:
        raise _unfit(file, wrong)


def _unfit(file: str, why: str) -> UserError:
    fix = "write source: and schedule: with one line for each name, as pypto-models does"
    return user_error(Diag.TILING, NOWHERE, file=file, why=f"it cannot take the choice: {why}", fix=fix)


def _unread(data: dict[str, dict[str, object]], chosen: tuple[Pick, ...]) -> Iterator[str]:
    for pick in chosen:
        if pick.part.kind == "source":
            want = pick.best[0].values
            got = {name: data["source"].get(name) for name in want}
        else:
            want = _fixed(pick)
            got = dict(data["schedule"].get(pick.part.name) or {})  # type: ignore[call-overload]
            overrides({pick.part.name: got})
        if got != want:
            yield f"{pick.part.name} reads {got} instead of {want}"
