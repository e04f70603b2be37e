"""The schedules that one bench compares: bundles, and schedules compiled in memory from a bundle's master graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from dipgo_deploy.bundle import Bundle, CompiledProgram
from dipgo_deploy.core.blocks import PREDICTION
from dipgo_deploy.core.contract import Contract, check_same_contract
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.program import Program
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.graphs.weights import read_layout
from dipgo_deploy.models.full_run import full_run_of

__all__ = ["FULL", "Entry", "bench_entries", "weight_bytes"]

FULL = "full"
"""Name of the full run's row. No schedule may have this name."""


@dataclass(frozen=True)
class Entry:
    """A schedule under the name of its row: the schedule of a bundle, or one ``compiled`` from its master graph."""

    name: str
    bundle: Bundle
    schedule: Schedule
    compiled: CompiledProgram | None = None

    @property
    def program(self) -> Program:
        """The program of the schedule."""
        return self.bundle.program if self.compiled is None else self.compiled.program

    @cached_property
    def time_grid(self) -> tuple[float, ...]:
        """The timesteps at which the prediction is computed, without repetitions (PNDM and Heun repeat timesteps)."""
        timesteps = self.schedule.contract.sampler.timesteps
        computed = (t for step, t in enumerate(timesteps) if self.schedule.is_computed(step, PREDICTION))
        return tuple(dict.fromkeys(computed))


def bench_entries(bundles: Sequence[Bundle], schedules: Sequence[tuple[str, Schedule]] = ()) -> tuple[Entry, ...]:
    """Name and check what a bench compares.

    Args:
        bundles: one or more bundles of one contract, named after their folders.
        schedules: more schedules by name. Each is compiled from the first bundle with the same blocks.

    Returns:
        The entries of the bundles, then of the schedules.

    Raises:
        UsageError: no bundle, or a name that occurs twice.
        InputError: another model or contract than the first bundle's, or blocks that no bundle has.
    """
    if not bundles:
        raise UsageError("a bench needs at least one bundle, got none: name a folder that export wrote")
    folders = [bundle.folder.resolve() for bundle in bundles]
    _check_names([*(folder.name for folder in folders), *(name for name, _ in schedules)])
    contract = _of_full_run(bundles[0].manifest.contract)
    for bundle in bundles[1:]:
        check_same_contract(contract, _of_full_run(bundle.manifest.contract), f"{bundle.folder}")
    for name, schedule in schedules:
        check_same_contract(contract, _of_full_run(schedule.contract), f"schedule {name}")
    own = [Entry(folder.name, bundle, bundle.schedule) for folder, bundle in zip(folders, bundles, strict=True)]
    return (*own, *(_compiled(name, schedule, bundles) for name, schedule in schedules))


def _of_full_run(contract: Contract) -> Contract:
    """A contract with the sampler of its full run, which a learned sampler stands in for."""
    return replace(contract, sampler=full_run_of(contract.sampler))


def _check_names(names: Sequence[str]) -> None:
    for name, count in Counter((*names, FULL)).items():
        if count > 1 and name == FULL:
            raise UsageError(f"the name {FULL!r} is reserved for the full run: rename the folder or file")
        if count > 1:
            raise UsageError(
                f"rows need distinct names, but {count} schedules are called {name!r}: rename a folder or file"
            )


def _compiled(name: str, schedule: Schedule, bundles: Sequence[Bundle]) -> Entry:
    for bundle in bundles:
        if bundle.blocks.block_names == schedule.blocks:
            return Entry(name, bundle, schedule, bundle.compile(schedule))
    granularities = " and ".join(dict.fromkeys(bundle.blocks.granularity for bundle in bundles))
    raise InputError(
        f"schedule {name} has {len(schedule.blocks)} blocks at granularity {schedule.granularity}, but the bundles "
        f"have granularity {granularities}: export the schedule and name its bundle"
    )


def weight_bytes(bundle: Bundle, program: Program | None = None) -> int:
    """Bytes of all tensors in a bundle's weights file, and of the constants inside the graphs.

    Args:
        bundle: the bundle.
        program: whose graphs to count. The bundle's own program by default.

    Returns:
        The bytes, shared weights once.
    """
    stored = read_layout(bundle.weights)
    total = sum(length for _, length in stored.values())
    for graph in (program or bundle.program).graphs:
        names = {name for index in graph.pieces for name in bundle.blocks.pieces[index].weights}
        total += sum(bundle.blocks.weights[name] for name in names if name.removeprefix("model.") not in stored)
    return total
