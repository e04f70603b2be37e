"""The result of a search: its ratio, calls, lowered size and MACs, as a document, as lines and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dipgo_deploy.cli.terminal import say
from dipgo_deploy.cli.units import count_text, macs_text, mib_text

if TYPE_CHECKING:
    from dipgo_deploy.core.blocks import BlockGraph
    from dipgo_deploy.core.contract import SamplerSpec
    from dipgo_deploy.core.schedule import Schedule
    from dipgo_deploy.search.options import SearchOptions

__all__ = ["draw_schedule", "say_sampler_note", "search_summary", "search_text"]


_OF_LEARNED = ("full_run", "teacher", "score_db", "best_plain", "best_plain_db")
"""Entries of ``origin`` that describe a learned sampler."""


def say_sampler_note(sampler: SamplerSpec) -> None:
    """Print why a sampler does not fold into the program. Prints nothing for a linear sampler."""
    from dipgo_deploy.models.sampler_note import sampler_note

    if note := sampler_note(sampler):
        say(note)


def search_summary(schedule: Schedule, graph: BlockGraph, options: SearchOptions) -> dict[str, Any]:
    """Summarise a schedule.

    Args:
        schedule: the result of the search.
        graph: blocks of the model.
        options: options of the search.

    Returns:
        Requested ratio (None where the options fix the computed steps), reached ratio, the largest ratio that the
        method reaches (in time with a latency table), MACs per image in both conventions (guidance rows included), and
        the size of the lowered program.
    """
    from dipgo_deploy.core.liveness import plan_steps, pruned_ratio, schedule_macs
    from dipgo_deploy.core.program import memory_bytes
    from dipgo_deploy.lowering import lower
    from dipgo_deploy.models.sampler_coefficients import read_sampler
    from dipgo_deploy.search.reachable import highest_ratio, ratio_of

    sampler = read_sampler(schedule.contract.sampler)
    program = lower(schedule, graph, sampler)
    contract = schedule.contract
    rows = contract.rows_per_image
    kept, full = schedule_macs(schedule, graph), graph.macs
    table, fixed = options.latency, options.settings is not None and options.settings.decides_ratio
    by_time = {"time_ratio": ratio_of(schedule, graph, options)} if table else {}
    origin = schedule.origin
    learned = {key: origin[key] for key in _OF_LEARNED if key in origin}
    return {
        **learned,
        "asked_ratio": None if fixed else options.ratio,
        "ratio": pruned_ratio(schedule, graph),
        "highest_ratio": highest_ratio(graph, schedule.steps, options),
        **by_time,
        "calls": sum(bool(plan.reach.pieces) for plan in plan_steps(schedule, graph)),
        "steps": schedule.steps,
        "sampler": contract.sampler.class_name,
        "sampler_not_linear": getattr(sampler, "reason", None),
        "guidance": contract.guidance,
        "graphs": len(program.graphs),
        "slot_bytes": memory_bytes(program, batch=1)["slots"],
        "macs": {"papers": kept.papers * rows, "full": kept.full * rows},
        "full_macs": {"papers": full.papers * rows * schedule.steps, "full": full.full * rows * schedule.steps},
    }


def search_text(summary: Mapping[str, Any], method: str) -> str:
    """The summary that `search_summary` made, as lines."""
    if "full_run" in summary:
        return "\n".join([*_learned_lines(summary, method), *_size_lines(summary)])
    requested = "" if summary["asked_ratio"] is None else f" (requested {summary['asked_ratio']:g})"
    lines = [f"{method}: ratio {summary['ratio']:.4f}{requested}"]
    if "time_ratio" in summary:
        lines = [f"{method}: ratio {summary['time_ratio']:.4f} of the estimated time{requested}"]
        lines += [f"ratio of MACs: {summary['ratio']:.4f}"]
    lines += [f"made for {summary['sampler']}, guidance layout {summary['guidance']}"]
    lines += [f"network calls: {summary['calls']} of {summary['steps']}"]
    return "\n".join([*lines, *_size_lines(summary)])


def _learned_lines(summary: Mapping[str, Any], method: str) -> list[str]:
    """What a search for a learned sampler found, next to the best plain sampler."""
    lines = [f"{method}: {summary['calls']} network calls in place of {summary['full_run']}"]
    lines += [f"made for {summary['sampler']}, guidance layout {summary['guidance']}"]
    lines += [f"held-out images: {float(summary['score_db']):.1f} dB PSNR to the teacher ({summary['teacher']})"]
    if "best_plain" in summary:
        lines += [f"best plain sampler: {float(summary['best_plain_db']):.1f} dB, {summary['best_plain']}"]
    return lines


def _size_lines(summary: Mapping[str, Any]) -> list[str]:
    lines = [f"lowers to {count_text(summary['graphs'], 'graph')}, slots {mib_text(summary['slot_bytes'])} per image"]
    for convention in ("papers", "full"):
        kept, full = summary["macs"][convention], summary["full_macs"][convention]
        lines += [f"MACs per image ({convention}): {macs_text(kept)} of {macs_text(full)}"]
    return lines


def draw_schedule(path: Path, schedule: Schedule, graph: BlockGraph, pruner: Path | None) -> None:
    """Draw a schedule, and the learned scores if a pruner made the schedule.

    Args:
        path: the picture, .png or .svg.
        schedule: the result of the search.
        graph: blocks of the model.
        pruner: file of the trained pruner. None for other methods.
    """
    from dipgo_deploy.bench.schedule_picture import schedule_picture
    from dipgo_deploy.search.dipgo.pruner_file import read_scores

    schedule_picture(schedule, path, graph, None if pruner is None else read_scores(pruner))
