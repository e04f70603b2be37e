"""What a search has found: its ratio, its calls, what it lowers to and its MACs, as a document and as lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dipgo_deploy.cli.units import count_text, macs_text, mib_text

if TYPE_CHECKING:
    from dipgo_deploy.core.blocks import BlockGraph
    from dipgo_deploy.core.schedule import Schedule
    from dipgo_deploy.search.options import SearchOptions

__all__ = ["search_summary", "search_text", "unmet_ratio"]


def search_summary(schedule: Schedule, graph: BlockGraph, options: SearchOptions) -> dict[str, Any]:
    """Asked and reached ratio, MACs per image in both conventions (guidance rows included), and what it lowers to."""
    from dipgo_deploy.core.liveness import plan_steps, pruned_ratio, schedule_macs
    from dipgo_deploy.core.program import memory_bytes
    from dipgo_deploy.lowering import lower
    from dipgo_deploy.models.sampler_reading import read_sampler
    from dipgo_deploy.search.cost import Pricer

    program = lower(schedule, graph, read_sampler(schedule.contract.sampler))
    contract = schedule.contract
    rows = contract.rows_per_image
    kept, full = schedule_macs(schedule, graph), graph.macs
    by_time = {"time_ratio": Pricer(graph, options.kind, options.cost).ratio(schedule.computed)} if options.cost else {}
    return {
        "asked_ratio": options.ratio,
        "ratio": pruned_ratio(schedule, graph),
        **by_time,
        "calls": sum(bool(plan.reach.pieces) for plan in plan_steps(schedule, graph)),
        "steps": schedule.steps,
        "sampler": contract.sampler.class_name,
        "guidance": contract.guidance,
        "graphs": len(program.graphs),
        "slot_bytes": memory_bytes(program, batch=1)["slots"],
        "macs": {"papers": kept.papers * rows, "full": kept.full * rows},
        "full_macs": {"papers": full.papers * rows * schedule.steps, "full": full.full * rows * schedule.steps},
    }


def search_text(summary: Mapping[str, Any], method: str) -> str:
    """The lines of a summary that `search_summary` made."""
    lines = [f"{method}: ratio {summary['ratio']:.4f} (asked {summary['asked_ratio']:g})"]
    if "time_ratio" in summary:
        lines = [f"{method}: ratio {summary['time_ratio']:.4f} of the time foretold (asked {summary['asked_ratio']:g})"]
        lines += [f"ratio of MACs: {summary['ratio']:.4f}"]
    lines += [f"made for {summary['sampler']}, guidance {summary['guidance']}"]
    lines += [f"network calls: {summary['calls']} of {summary['steps']}"]
    lines += [f"lowers to {count_text(summary['graphs'], 'graph')}, slots {mib_text(summary['slot_bytes'])} an image"]
    for convention in ("papers", "full"):
        kept, full = summary["macs"][convention], summary["full_macs"][convention]
        lines += [f"MACs per image ({convention}): {macs_text(kept)} of {macs_text(full)}"]
    return "\n".join(lines)


def unmet_ratio(summary: Mapping[str, Any], options: SearchOptions, limit_graphs: int | None) -> str:
    """A warning where the asked ratio is not met; "" where it is, or where an interval decides instead."""
    from dipgo_deploy.search.options import TOLERANCE

    reached = summary.get("time_ratio", summary["ratio"])
    if options.interval is not None or abs(reached - options.ratio) <= TOLERANCE:
        return ""
    way = "take more steps or a finer granularity" if limit_graphs is None else f"allow more than {limit_graphs} graphs"
    return f"warning: the ratio is {reached:.4f}, wanted was {options.ratio:g}: {way}"
