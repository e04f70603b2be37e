"""The schedules that one bench compares: bundles, and schedules compiled in memory from a bundle's master graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from dipgo_deploy.bundle import Bundle, CompiledProgram
from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.contract import check_same_contract
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.program import Program
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.graphs.weights import read_layout

__all__ = ["FULL", "Entry", "bench_entries", "weight_bytes"]

FULL = "full"
"""Name of the full run's row, which no schedule may have."""


@dataclass(frozen=True)
class Entry:
    """A schedule under the name of its row: a bundle's own, or ``compiled`` from a bundle's master graph."""

    name: str
    bundle: Bundle
    schedule: Schedule
    compiled: CompiledProgram | None = None

    @property
    def program(self) -> Program:
        """What it runs."""
        return self.bundle.program if self.compiled is None else self.compiled.program

    @cached_property
    def grid(self) -> tuple[float, ...]:
        """The timesteps at which it computes the prediction; one that repeats (PNDM, Heun) once."""
        timesteps = self.schedule.contract.sampler.timesteps
        computed = (t for step, t in enumerate(timesteps) if self.schedule.is_computed(step, PREDICTION))
        return tuple(dict.fromkeys(computed))


def bench_entries(bundles: Sequence[Bundle], schedules: Sequence[tuple[str, Schedule]] = ()) -> tuple[Entry, ...]:
    """Entries of ``bundles`` under their folders' names, then of ``schedules`` under the given ones.

    A schedule is compiled from the first bundle whose model is divided into the same blocks. Raises UsageError for no
    bundle or a name that occurs twice, InputError for another model or contract than the first bundle's, or for blocks
    that no bundle has.
    """
    if not bundles:
        raise UsageError("a bench needs a bundle, found none: name a folder that export wrote")
    folders = [bundle.folder.resolve() for bundle in bundles]
    _check_names([*(folder.name for folder in folders), *(name for name, _ in schedules)])
    contract = bundles[0].manifest.contract
    for bundle in bundles[1:]:
        check_same_contract(contract, bundle.manifest.contract, f"{bundle.folder}")
    for name, schedule in schedules:
        check_same_contract(contract, schedule.contract, f"schedule {name}")
    own = [Entry(folder.name, bundle, bundle.schedule) for folder, bundle in zip(folders, bundles, strict=True)]
    return (*own, *(_compiled(name, schedule, bundles) for name, schedule in schedules))


def _check_names(names: Sequence[str]) -> None:
    for name, count in Counter((*names, FULL)).items():
        if count > 1 and name == FULL:
            raise UsageError(f"{FULL!r} is the full run's row: rename the folder or file of that name")
        if count > 1:
            raise UsageError(
                f"{count} schedules are called {name!r}: rename a folder or file, rows need distinct names"
            )


def _compiled(name: str, schedule: Schedule, bundles: Sequence[Bundle]) -> Entry:
    for bundle in bundles:
        if bundle.blocks.block_names == schedule.blocks:
            return Entry(name, bundle, schedule, bundle.compile(schedule))
    known = " and ".join(dict.fromkeys(bundle.blocks.granularity for bundle in bundles))
    raise InputError(
        f"schedule {name} divides the model into {len(schedule.blocks)} blocks at granularity {schedule.granularity}, "
        f"the bundles at {known}: export it, and name its bundle"
    )


def weight_bytes(bundle: Bundle, program: Program | None = None) -> int:
    """Bytes of weights in a bundle: all tensors of its weights file, and the constants inside each of its graphs.

    With a ``program``, the graphs are those of that one.
    """
    stored = read_layout(bundle.weights)
    total = sum(length for _, length in stored.values())
    for graph in (program or bundle.program).graphs:
        names = {name for index in graph.pieces for name in bundle.blocks.pieces[index].weights}
        total += sum(bundle.blocks.weights[name] for name in names if name.removeprefix("model.") not in stored)
    return total
