"""The formats by name: which blocks each speaks of, and its reader and writer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dipgo_deploy.core.blocks import BlockGraph, Kind
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.schedule import Schedule, check_schedule
from dipgo_deploy.search.interchange import cache_dit, deepcache, dipgo, fora, smoothcache

__all__ = ["FORMATS", "Format", "export_schedule", "format_named", "import_schedule"]

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A tool's way to say a schedule.

    Attributes:
        granularity: block set of the models that it is read for and written from.
        kind: what its reused blocks stand for.
        read: ``read(document, graph, contract)`` gives the schedule.
        write: ``write(schedule)`` gives the document.
        options: command-line options that stand for fields of the document, by the option's name.
    """

    granularity: str
    kind: Kind
    read: Callable[[Document, BlockGraph, Contract], Schedule]
    write: Callable[[Schedule], dict[str, Any]]
    options: Mapping[str, str]


FORMATS: Mapping[str, Format] = {
    "deepcache": Format(
        "layer", "output", deepcache.read, deepcache.write,
        {"interval": "cache_interval", "branch": "cache_branch_id", "skip-mode": "skip_mode"},
    ),
    "fora": Format("branch", "output", fora.read, fora.write, {"interval": "interval"}),
    "smoothcache": Format("branch", "output", smoothcache.read, smoothcache.write, {}),
    "cache-dit": Format(
        "stage", "residual", cache_dit.read, cache_dit.write,
        {"first": "Fn_compute_blocks", "last": "Bn_compute_blocks"},
    ),
    "dipgo": Format("stage", "output", dipgo.read, dipgo.write, {}),
}  # fmt: skip
"""Every format that is read and written."""


def format_named(name: str) -> Format:
    """The format of that name; UsageError where there is none."""
    if name not in FORMATS:
        raise UsageError(f"there is no format {name!r}: choose {', '.join(FORMATS)}")
    return FORMATS[name]


def import_schedule(name: str, document: Document, graph: BlockGraph, contract: Contract) -> Schedule:
    """The schedule that ``document`` of format ``name`` means for the model of ``graph`` under ``contract``.

    Raises InputError where the document is damaged or does not fit model or sampler, UsageError where ``graph`` was
    traced with other blocks than the format speaks of.
    """
    form = format_named(name)
    if graph.granularity != form.granularity:
        raise UsageError(
            f"{name} speaks of the blocks of granularity {form.granularity}, the model was traced at "
            f"{graph.granularity}: trace it at {form.granularity}"
        )
    return form.read(document, graph, contract)


def export_schedule(name: str, schedule: Schedule) -> dict[str, Any]:
    """``schedule`` as a document of format ``name``.

    Raises InputError, naming the first step and block, where the format cannot say it.
    """
    form = format_named(name)
    check_schedule(schedule)
    if schedule.granularity != form.granularity:
        raise InputError(
            f"{name} speaks of the blocks of granularity {form.granularity}, the schedule has those of "
            f"{schedule.granularity}, such as {schedule.blocks[0]}: search one at {form.granularity}"
        )
    _check_reuse(name, form, schedule)
    return form.write(schedule)


def _check_reuse(name: str, form: Format, schedule: Schedule) -> None:
    """All formats hold one kind of feature of one model."""
    for (step, block), coefficients in sorted(schedule.forecasts.items()):
        if coefficients != (1.0,):
            raise InputError(
                f"step {step} forecasts {block} from {len(coefficients)} feature(s), {name} holds the last one: remove "
                "the forecast"
            )
    for step, row in enumerate(schedule.compute):
        for block, on in zip(schedule.blocks[:-1], row, strict=False):
            if not on and schedule.kind != form.kind:
                raise InputError(
                    f"step {step} reuses the {schedule.kind} of {block}, {name} reuses its {form.kind}: search one of "
                    f"kind {form.kind}"
                )
    for step, expert in enumerate(schedule.experts):
        if expert != schedule.experts[0]:
            raise InputError(f"step {step} runs expert {expert}, {name} knows one model: export one expert's schedule")
