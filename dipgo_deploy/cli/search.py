"""``dipgo-deploy search``: make a reuse schedule for a model and a sampler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dipgo_deploy.cli.options import Blocks, Granularity, Json, Model, patterns_of
from dipgo_deploy.cli.output import emit, result, working

if TYPE_CHECKING:
    from dipgo_deploy.core.blocks import BlockGraph
    from dipgo_deploy.core.schedule import Schedule


def search(
    model: Model,
    out: Annotated[Path, typer.Option(help="Where the schedule is written.")] = Path("schedule.json"),
    method: Annotated[str, typer.Option(help="uniform, deepcache, fora or random.")] = "uniform",
    ratio: Annotated[float, typer.Option(help="Share of the full run's MACs to prune, in [0, 1).")] = 0.8,
    sampler: Annotated[str, typer.Option(help="Sampler by name, such as ddim, dpmpp-2m, unipc, euler.")] = "ddim",
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler's full run.")] = 50,
    guidance: Annotated[Literal["none", "concat"], typer.Option(help="Classifier-free guidance layout.")] = "none",
    granularity: Granularity = "stage",
    blocks: Blocks = None,
    kind: Annotated[Literal["output", "residual"], typer.Option(help="What a reused block stands for.")] = "output",
    interval: Annotated[int | None, typer.Option(help="Full computation every so many steps.")] = None,
    depth: Annotated[int | None, typer.Option(help="Blocks computed at each end in between (deepcache).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the method random.")] = 0,
    as_json: Json = False,
) -> None:
    """Search a schedule for MODEL that prunes the asked share of MACs."""
    from dipgo_deploy.search import SearchOptions, search_schedule

    options = SearchOptions(method, ratio, kind=kind, seed=seed, interval=interval, depth=depth)
    patterns = patterns_of(blocks)
    from dipgo_deploy.core.files import check_target, save_schedule

    check_target(out)
    from dipgo_deploy.graphs import trace
    from dipgo_deploy.models import load_model, make_contract

    with working(f"searching a schedule for {model}"):
        loaded = load_model(model)
        contract = make_contract(loaded, sampler=sampler, steps=steps, guidance=guidance)
        graph = trace(loaded, granularity=granularity, patterns=patterns).blocks
        schedule = search_schedule(graph, contract, options)
    save_schedule(out, schedule)
    summary = _summary(schedule, graph, ratio)
    if as_json:
        emit({**summary, "out": str(out)})
        return
    result(_text(summary, method))
    result(f"in {out}")


def _summary(schedule: Schedule, graph: BlockGraph, asked: float) -> dict[str, Any]:
    """Asked and reached ratio and MACs per image in both conventions, guidance rows included."""
    from dipgo_deploy.core.liveness import plan_steps, pruned_ratio, schedule_macs

    rows = schedule.contract.rows_per_image
    kept, full = schedule_macs(schedule, graph), graph.macs
    return {
        "asked_ratio": asked,
        "ratio": pruned_ratio(schedule, graph),
        "calls": sum(bool(plan.reach.pieces) for plan in plan_steps(schedule, graph)),
        "steps": schedule.steps,
        "macs": {"papers": kept.papers * rows, "full": kept.full * rows},
        "full_macs": {"papers": full.papers * rows * schedule.steps, "full": full.full * rows * schedule.steps},
    }


def _text(summary: dict[str, Any], method: str) -> str:
    from dipgo_deploy.cli.units import macs_text

    lines = [f"{method}: ratio {summary['ratio']:.4f} (asked {summary['asked_ratio']:g})"]
    lines += [f"network calls: {summary['calls']} of {summary['steps']}"]
    for convention in ("papers", "full"):
        kept, full = summary["macs"][convention], summary["full_macs"][convention]
        lines += [f"MACs per image ({convention}): {macs_text(kept)} of {macs_text(full)}"]
    return "\n".join(lines)
