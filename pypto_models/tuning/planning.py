"""Planning a tuning: cut parts out of a program, choose variants, compile them, keep what each must give."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..backend import Bundles, Compiled, Prepares, Saved
from ..compile import backend_table, lower_for, lower_function
from ..cost import estimate
from ..cost.inputs import known_names
from ..errors import Diag, UserError, user_error
from ..ir.nodes import Function
from ..language import Kernel
from ..schedule import RegionDomain, Schedule
from ..schedule.overrides import overrides
from ..target import Target
from .choices import Group, facts_of, legal, schedules, sizes_of, values_of
from .data import Argument, arguments, empty, make, sample
from .part import part_of
from .records import Part, Plan, Refused, Value, Variant

Say = Callable[[str], None]
Backend = Any  # that compiles: Bundles, and Prepares if it can compile many at once


@dataclass(frozen=True)
class Source:
    """A kernel and what it is compiled with.

    ``arguments``: extents, scalars and contents of index tensors; ``groups``: constants to choose.
    """

    file: str
    kernel: Kernel
    target: Target
    constants: Mapping[str, Any]
    arguments: Mapping[str, Any]
    groups: Mapping[str, Group] = field(default_factory=dict)

    def lowered(self, values: Mapping[str, Any] | None = None) -> Compiled:
        constants = {**self.constants, **(values or {})}
        return lower_for(self.kernel, (), self.target, constants, schedules={})


@dataclass
class _Built:
    """A part on its way: its variants are compiled, and not yet saved."""

    name: str
    kind: str
    regions: tuple[str, ...]
    arguments: tuple[Argument, ...]
    sizes: dict[str, int]
    function: Function
    variants: list[tuple[dict[str, Value], Compiled, float]]


def plan(
    source: Source,
    backend: Backend,
    folder: Path,
    *,
    regions: Sequence[str] = (),
    most: int = 16,
    limit: int = 48 * 2**20,
    tried: Mapping[str, Sequence[Mapping[str, Value]]] | None = None,
    say: Say = print,
) -> Plan:
    """Make the folder of a tuning.

    Args:
        regions: the parts to tune, by the name of a region or a group; by default all products and groups.
        most: variants of a part, at most, the best by their estimates; the default is always one of them.
        limit: bytes of the folder, at most.
        tried: values to be measured in any case, by region.

    Raises:
        UserError: an unknown region or one that nothing can be chosen for, values in ``tried`` that are not
            legal, an argument without a value, or a folder that would be larger than ``limit``.
    """
    compiled = source.lowered()
    refused: list[Refused] = []
    parts = []
    for name in _names(source, compiled, regions):
        if name in source.groups:
            built = _constants(source, name, compiled, most, refused)
        else:
            built = _schedules(source, name, compiled, most, (tried or {}).get(name, ()), backend)
        say(f"{name}: {len(built.variants)} variants")
        parts.append(built)
    _fresh(folder)
    if isinstance(backend, Prepares):
        backend.prepare([c for p in parts for _, c, _ in p.variants])
    made = tuple(_saved(p, backend, folder, refused, source.target, say) for p in parts)
    found = Plan(source.file, source.kernel.name, source.target.name, backend.name, made, tuple(refused))
    found.write(folder)
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    if size > limit:
        fix = "tune fewer regions, or fewer variants of each: --region, --most"
        why = f"it takes {size / 2**20:.3g} MiB of {limit / 2**20:.3g}"
        raise user_error(Diag.ARGUMENT, None, name=str(folder), why=why, fix=fix)
    say(f"{folder}: {sum(len(p.variants) for p in made)} variants, {size / 2**20:.1f} MiB")
    return found


def _names(source: Source, compiled: Compiled, regions: Sequence[str]) -> list[str]:
    regions_of = {d.name for d in compiled.domains}
    own = {
        n: g for n, g in source.groups.items()
        if regions_of.issuperset(g.regions) and source.constants.keys() >= g.constants.keys()
    }  # of one file, some may be of its other kernels
    grouped = {r for g in own.values() for r in g.regions}
    products = [d.name for d in compiled.domains if facts_of(d) is not None and d.name not in grouped]
    known = list(dict.fromkeys([*products, *own]))
    for name in regions:
        if name not in known:
            fix = f"known: {', '.join(known)}"
            why = "it is no streamed product and no group of the file's cli_tuning"
            raise user_error(Diag.ARGUMENT, None, name=name, why=why, fix=fix)
    return list(regions) or known


def _front_end(compiled: Compiled) -> Function:
    return compiled.stages[0][1]


def _domain(compiled: Compiled, name: str) -> RegionDomain:
    return next(d for d in compiled.domains if d.name == name)


def _schedules(
    source: Source, name: str, compiled: Compiled, most: int, tried: Sequence[Mapping[str, Value]],
    backend: Backend,
) -> _Built:  # fmt: skip
    function = part_of(_front_end(compiled), (name,), name)
    alone = lower_function(function, source.target)
    domain = _domain(alone, name)
    wanted: list[tuple[dict[str, Value], Schedule]] = []
    for values in tried:
        s = legal(domain, source.target, values)
        if isinstance(s, str):
            given = ", ".join(f"{k} {v}" for k, v in values.items())
            fix = "leave it out, or change one of its values"
            raise user_error(Diag.ARGUMENT, domain.task.span, name=f"{name}: {given}", why=s, fix=fix)
        wanted.append((values_of(s), s))
    wanted = [(values_of(s), s) for s in schedules(domain, source.target, most, backend)] + wanted
    if not wanted:
        why, fix = "no ring of a block takes its weights", "leave it out"
        raise user_error(Diag.ARGUMENT, domain.task.span, name=name, why=why, fix=fix)
    variants = []
    for values, s in {tuple(v.values()): (v, s) for v, s in wanted}.values():
        fixed = overrides({name: values})
        variants.append((values, replace(alone, overrides=fixed), s.estimate_s * 1e6))
    return _Built(
        name, "schedule", (name,), arguments(function, source.arguments), sizes_of(wanted[0][1]), function,
        variants,
    )  # fmt: skip


def _constants(source: Source, name: str, compiled: Compiled, most: int, refused: list[Refused]) -> _Built:
    group = source.groups[name]
    now = {k: source.constants[k] for k in group.constants}
    function = part_of(_front_end(compiled), group.regions, name)
    own = arguments(function, source.arguments)
    variants: list[tuple[dict[str, Value], Compiled, float]] = []
    choices: list[dict[str, Any]] = [now, *(v for v in group.choices() if v != now)]
    for values in choices:
        try:
            part = part_of(_front_end(source.lowered(values)), group.regions, name)
            if arguments(part, source.arguments) != own:
                raise user_error(
                    Diag.ARGUMENT, None, name=name, why="its arguments differ from those of the default",
                    fix="tune more regions as one part",
                )  # fmt: skip
            alone = lower_function(part, source.target)
            known = known_names(alone.function)
            given = {k: v for k, v in source.arguments.items() if k in known}
            seconds = estimate(alone.graph, source.target, given).summary.seconds
            variants.append((values, alone, seconds * 1e6))
        except UserError as error:
            if values is now:
                raise
            refused.append(Refused(name, values, str(error).splitlines()[0]))
    first, *rest = variants
    rest = sorted(rest, key=lambda v: v[2])[: most - 1]
    return _Built(name, "source", group.regions, own, {}, function, [first, *rest])


# ------------------------------------------------------------------------------------------- the folder
def _fresh(folder: Path) -> None:
    """Without what an earlier plan left; anything else in it stays, and is an error."""
    folder.mkdir(parents=True, exist_ok=True)
    own = {"plan.json", "results.jsonl", "reference", "programs"}
    if other := sorted(f.name for f in folder.iterdir() if f.name not in own):
        why, fix = f"it holds {other[0]}, which is not of a tuning", "give an empty folder"
        raise user_error(Diag.ARGUMENT, None, name=str(folder), why=why, fix=fix)
    for f in folder.iterdir():
        if f.is_dir():
            shutil.rmtree(f)
        else:
            f.unlink()


def _saved(
    built: _Built, backend: Bundles, folder: Path, refused: list[Refused], target: Target, say: Say
) -> Part:
    _reference(built, folder, target, say)
    variants: dict[str, Variant] = {}
    for i, (values, compiled, us) in enumerate(built.variants):
        try:
            place = _keep(backend.bundle(compiled), folder)
        except UserError as error:
            if i == 0:
                raise
            refused.append(Refused(built.name, values, str(error).splitlines()[0]))
            continue
        variants.setdefault(place, Variant(f"{built.name}/{i}", values, place, round(us, 3), i == 0))
    return Part(
        built.name, built.kind, built.regions, built.arguments, built.sizes, tuple(variants.values())
    )  # fmt: skip


def _keep(program: Saved, folder: Path) -> str:
    """Save a program under a digest of its files; equal programs share a folder."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        aside = Path(name) / "program"
        program.save(aside)
        content = b"".join(f.name.encode() + f.read_bytes() for f in sorted(aside.iterdir()))
        place = programs / hashlib.sha256(content).hexdigest()[:16]
        if not place.exists():
            aside.rename(place)
    return str(place.relative_to(folder))


def _reference(built: _Built, folder: Path, target: Target, say: Say) -> None:
    """What the part computes, from the simulator."""
    values = {a.name: make(a) for a in built.arguments}
    compiled = lower_function(built.function, target)
    backend_table()["sim"].build(compiled)(values)
    expected = {a.name: sample(values[a.name]) for a in built.arguments if a.direction != "in"}
    if why := empty(expected):
        fix = "give other values of --extent"
        raise user_error(Diag.ARGUMENT, None, name=built.name, why=f"nothing can be checked: {why}", fix=fix)
    (folder / "reference").mkdir(exist_ok=True)
    torch.save(expected, folder / "reference" / f"{built.name}.pt")
