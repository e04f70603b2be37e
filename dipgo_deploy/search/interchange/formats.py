"""The formats by name: the blocks that each describes, its reader and its writer."""

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
    """How one tool expresses a schedule.

    Attributes:
        granularity: block set of the models that the format describes.
        kind: whether reuse is of a block's output or its residual.
        read: ``read(document, graph, contract)`` gives the schedule.
        write: ``write(schedule)`` gives the document.
        options: fields of the document by the command-line option that sets each.
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
"""Every format."""


def format_named(name: str) -> Format:
    """The format of that name. UsageError if there is none."""
    if name not in FORMATS:
        raise UsageError(f"format {name!r} is unknown: choose {', '.join(FORMATS)}")
    return FORMATS[name]


def import_schedule(name: str, document: Document, graph: BlockGraph, contract: Contract) -> Schedule:
    """Read a schedule of another tool.

    Args:
        name: the format.
        document: the tool's settings.
        graph: blocks of the model, traced at the format's granularity.
        contract: sampler, steps and guidance.

    Returns:
        The schedule.

    Raises:
        InputError: the document is damaged, or does not fit model or sampler.
        UsageError: the model was traced with other blocks than the format describes.
    """
    form = format_named(name)
    if graph.granularity != form.granularity:
        raise UsageError(
            f"{name} describes blocks of granularity {form.granularity}, but the model was traced at "
            f"{graph.granularity}: trace it at {form.granularity}"
        )
    return form.read(document, graph, contract)


def export_schedule(name: str, schedule: Schedule) -> dict[str, Any]:
    """Write a schedule for another tool.

    Args:
        name: the format.
        schedule: the schedule.

    Returns:
        The tool's settings.

    Raises:
        InputError: the format cannot express the schedule. The message names the first step and block.
    """
    form = format_named(name)
    check_schedule(schedule)
    if schedule.granularity != form.granularity:
        raise InputError(
            f"{name} describes blocks of granularity {form.granularity}, but the schedule has those of "
            f"{schedule.granularity}, such as {schedule.blocks[0]}: search a schedule at {form.granularity}"
        )
    _check_reuse(name, form, schedule)
    return form.write(schedule)


def _check_reuse(name: str, form: Format, schedule: Schedule) -> None:
    """All formats hold the last feature, of one kind and of one model."""
    for (step, block), coefficients in sorted(schedule.forecasts.items()):
        if coefficients != (1.0,):
            raise InputError(
                f"step {step} forecasts {block} from {len(coefficients)} feature(s), but {name} holds the last: remove "
                "the forecast"
            )
    for step, row in enumerate(schedule.compute):
        for block, on in zip(schedule.blocks[:-1], row, strict=False):
            if not on and schedule.kind != form.kind:
                raise InputError(
                    f"step {step} reuses the {schedule.kind} of {block}, but {name} reuses its {form.kind}: search a "
                    f"schedule of kind {form.kind}"
                )
    for step, expert in enumerate(schedule.experts):
        if expert != schedule.experts[0]:
            raise InputError(
                f"step {step} runs expert {expert}, but {name} has one model: export one expert's schedule"
            )
