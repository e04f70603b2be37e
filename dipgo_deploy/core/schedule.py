"""Schedule: for every step and block, whether to compute or reuse it, and the coefficients of the reuse."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property

from dipgo_deploy.core.blocks import PREDICTION, Kind
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import InputError

__all__ = ["HOLD", "MAIN_EXPERT", "Schedule", "check_schedule", "full_schedule", "in_order"]

HOLD = (1.0,)
"""Coefficients of the simplest reuse: the last computed feature, unchanged."""

MAIN_EXPERT = "main"
"""Name of the single expert of a model that is not a mixture."""


@dataclass(frozen=True, repr=False)
class Schedule:
    """A static reuse schedule.

    A step is one network call of the full run, counted from 0. A reused block is replaced by ``sum_j c_j f_j`` over its
    last computed features f, newest first.

    Attributes:
        contract: model, sampler and shapes.
        granularity: name of the block set.
        kind: whether reuse is of a block's output or its residual.
        blocks: names of all blocks in execution order. The last is the prediction.
        compute: ``compute[step][i]`` says whether ``blocks[i]`` is computed at that step.
        forecasts: the coefficients c for a step and block. Absent means ``(1.0,)``, the last feature unchanged.
        experts: the model of each step. Empty for a single model.
        origin: how the schedule was made: method, options and seed.
    """

    contract: Contract
    granularity: str
    kind: Kind
    blocks: tuple[str, ...]
    compute: tuple[tuple[bool, ...], ...]
    forecasts: Mapping[tuple[int, str], tuple[float, ...]] = field(default_factory=dict)
    experts: tuple[str, ...] = ()
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        total = max(1, self.steps * len(self.blocks))
        return (
            f"Schedule({self.contract.model_class}, {self.contract.sampler.class_name}, {self.steps} steps of "
            f"{len(self.blocks)} blocks at {self.granularity}, {sum(map(sum, self.compute)) / total:.0%} computed)"
        )

    @property
    def steps(self) -> int:
        """Number of network calls of the full run."""
        return len(self.compute)

    @cached_property
    def computed(self) -> tuple[frozenset[str], ...]:
        """Names of the computed blocks, step by step."""
        return tuple(frozenset(b for b, on in zip(self.blocks, row, strict=True) if on) for row in self.compute)

    def is_computed(self, step: int, block: str) -> bool:
        """Whether ``block`` is computed at ``step``."""
        return block in self.computed[step]

    def sources(self, step: int, block: str) -> tuple[tuple[int, float], ...]:
        """Where the reused feature of a block comes from.

        Args:
            step: the step that reuses the block.
            block: name of the block.

        Returns:
            Pairs of source step and coefficient, newest first.

        Raises:
            InputError: fewer features were computed before than there are coefficients.
        """
        coefficients = self.forecasts.get((step, block), HOLD)
        steps = self.earlier(step, block)[: len(coefficients)]
        if len(steps) < len(coefficients):
            raise InputError(
                f"step {step} reuses {block} from {len(coefficients)} computed feature(s), but it was computed only "
                f"{len(steps)} time(s) before: compute {block} at an earlier step"
            )
        return tuple(zip(steps, coefficients, strict=True))

    def earlier(self, step: int, block: str) -> list[int]:
        """The steps before ``step`` at which ``block`` was computed, newest first."""
        return [s for s in range(step - 1, -1, -1) if block in self.computed[s]]

    def with_compute(self, computed: Sequence[frozenset[str]]) -> Schedule:
        """The same schedule with other compute sets, without the forecasts of blocks that are now computed."""
        rows = tuple(tuple(block in step for block in self.blocks) for step in computed)
        kept = {key: c for key, c in self.forecasts.items() if key[1] not in computed[key[0]]}
        return replace(self, compute=rows, forecasts=kept)


def full_schedule(contract: Contract, granularity: str, kind: Kind, blocks: tuple[str, ...]) -> Schedule:
    """The full run: the schedule that computes everything.

    Args:
        contract: model, sampler and shapes.
        granularity: name of the block set.
        kind: whether reuse is of a block's output or its residual.
        blocks: names of all blocks in execution order.

    Returns:
        The schedule.
    """
    row = (True,) * len(blocks)
    return Schedule(contract, granularity, kind, blocks, (row,) * contract.sampler.calls, origin={"method": "full"})


def check_schedule(schedule: Schedule, blocks: tuple[str, ...] | None = None) -> None:
    """Check that a schedule can be run.

    Args:
        schedule: the schedule.
        blocks: the blocks of the model, if known.

    Raises:
        InputError: the schedule cannot be run, or not on this model. The message names step and block.
    """
    if blocks is not None and schedule.blocks != blocks:
        _check_names(schedule, blocks)
        raise InputError(
            f"the schedule has the blocks of the model at granularity {schedule.granularity}, but in another order: "
            "pass the schedule through in_order"
        )
    if PREDICTION not in schedule.blocks:
        raise InputError(
            f"the schedule has no block '{PREDICTION}'{_near(PREDICTION, schedule.blocks)}: add that block"
        )
    if schedule.blocks[-1] != PREDICTION:
        raise InputError(f"'{PREDICTION}' must be the last block, found {schedule.blocks[-1]!r} after it: move it")
    if schedule.steps != schedule.contract.sampler.calls:
        raise InputError(
            f"the schedule has {schedule.steps} steps, its sampler makes {schedule.contract.sampler.calls} network "
            "calls: give one entry per call"
        )
    _check_rows(schedule)
    _check_forecasts(schedule)


def in_order(schedule: Schedule, blocks: tuple[str, ...]) -> Schedule:
    """A schedule with its blocks in the model's order. The order in a file does not matter.

    Args:
        schedule: the schedule.
        blocks: the blocks of the model in execution order.

    Returns:
        The schedule in that order.

    Raises:
        InputError: the schedule has other blocks than the model. The message names the first and its nearest names.
    """
    if schedule.blocks == blocks:
        return schedule
    _check_names(schedule, blocks)
    rows = tuple(tuple(block in step for block in blocks) for step in schedule.computed)
    return replace(schedule, blocks=blocks, compute=rows)


def _check_names(schedule: Schedule, blocks: tuple[str, ...]) -> None:
    where = f"at granularity {schedule.granularity}"
    if unknown := [block for block in schedule.blocks if block not in blocks]:
        raise InputError(
            f"the schedule names block {unknown[0]!r}, which is none of the model's {len(blocks)} blocks {where}"
            f"{_near(unknown[0], blocks)}: rename it, or search a schedule for this model"
        )
    if missing := [block for block in blocks if block not in schedule.blocks]:
        raise InputError(
            f"the schedule has no block {missing[0]!r}, which the model has {where}: add it, or search a schedule for "
            "this model"
        )


def _near(name: str, known: Iterable[str]) -> str:
    """The known names that a name may be a slip of, as the end of a sentence."""
    near = get_close_matches(name, list(known), n=3, cutoff=0.7)
    return f" (near: {', '.join(near)})" if near else ""


def _check_rows(schedule: Schedule) -> None:
    for step, row in enumerate(schedule.compute):
        if len(row) != len(schedule.blocks):
            raise InputError(f"step {step} has {len(row)} entries for {len(schedule.blocks)} blocks: give one each")
    for step in range(schedule.steps):
        for block in schedule.blocks:
            if block not in schedule.computed[step]:
                schedule.sources(step, block)
    if schedule.experts and len(schedule.experts) != schedule.steps:
        raise InputError(f"{len(schedule.experts)} experts for {schedule.steps} steps: name one expert per step")


def _check_forecasts(schedule: Schedule) -> None:
    for (step, block), coefficients in schedule.forecasts.items():
        if block not in schedule.blocks or not 0 <= step < schedule.steps:
            raise InputError(f"a forecast is given for step {step} of {block}, which does not exist: remove it")
        if block in schedule.computed[step]:
            raise InputError(f"a forecast is given for step {step} of {block}, which is computed there: remove one")
        if not coefficients:
            raise InputError(f"the forecast for step {step} of {block} has no coefficients: give one or more")
