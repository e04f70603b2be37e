"""``dipgo-deploy search``: make a reuse schedule for a model and a sampler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dipgo_deploy.cli.options import (
    Blocks,
    Config,
    Dtype,
    Granularity,
    Json,
    Lora,
    Meta,
    Model,
    RandomWeights,
    Revision,
    Variant,
    patterns_of,
)
from dipgo_deploy.cli.output import emit, result
from dipgo_deploy.cli.source import ModelSource

if TYPE_CHECKING:
    from dipgo_deploy.core.blocks import BlockGraph
    from dipgo_deploy.core.schedule import Schedule
    from dipgo_deploy.search.options import SearchOptions

_METHODS = "dipgo, uniform, deepcache, fora, random, best-random, evolutionary or dpcache."


def search(
    model: Model = None,
    random_weights: RandomWeights = None,
    variant: Variant = None,
    revision: Revision = None,
    config: Config = None,
    out: Annotated[Path, typer.Option(help="Where the schedule is written.")] = Path("schedule.json"),
    method: Annotated[str, typer.Option(help=_METHODS)] = "uniform",
    ratio: Annotated[float, typer.Option(help="Share of the full run's MACs to prune, in [0, 1).")] = 0.8,
    cost: Annotated[
        Path | None, typer.Option(help="Latency table that profile wrote: the ratio is then a share of time.")
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="Sampler by name, such as ddim; the model's own if left out.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the sampler's full run.")] = 50,
    guidance: Annotated[Literal["none", "concat"], typer.Option(help="Classifier-free guidance layout.")] = "none",
    granularity: Granularity = "stage",
    blocks: Blocks = None,
    lora: Lora = None,
    kind: Annotated[Literal["output", "residual"], typer.Option(help="What a reused block stands for.")] = "output",
    interval: Annotated[int | None, typer.Option(help="Full computation every so many steps.")] = None,
    depth: Annotated[int | None, typer.Option(help="Blocks computed at each end in between (deepcache).")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every method that draws (0).")] = None,
    candidates: Annotated[int | None, typer.Option(help="Random schedules to judge (best-random).")] = None,
    population: Annotated[int | None, typer.Option(help="Schedules of a generation (evolutionary).")] = None,
    trajectories: Annotated[int | None, typer.Option(help="Budget in full trajectories (evolutionary).")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Images that judge schedules (8).")] = None,
    conditions: Annotated[
        Path | None, typer.Option(help="File of class numbers or prompts, one a line, to search on.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=0.0, help="Guidance scale to search at.")] = None,
    preset: Annotated[str, typer.Option(help="Settings of dipgo: default, paper or paper-dit.")] = "default",
    iterations: Annotated[int | None, typer.Option(help="Gradient steps (dipgo).")] = None,
    polish: Annotated[int | None, typer.Option(help="Full trajectories for exchanges; 0: none (dipgo).")] = None,
    order: Annotated[
        Literal["bisection", "greedy"], typer.Option(help="How scores become a schedule (dipgo).")
    ] = "bisection",
    pruner: Annotated[Path | None, typer.Option(help="The pruner's file; continued if it exists.")] = None,
    from_pruner: Annotated[Path | None, typer.Option(help="Use this trained pruner, for any ratio.")] = None,
    limit_graphs: Annotated[int | None, typer.Option(min=1, help="At most so many distinct graphs.")] = None,
    dtype: Dtype = "float32",
    meta: Meta = False,
    picture: Annotated[Path | None, typer.Option(help="Draw learnt scores and schedule (.png or .svg).")] = None,
    as_json: Json = False,
) -> None:
    """Search a schedule for MODEL that prunes the asked share of MACs."""
    from dipgo_deploy.cli.asked import Asked, GradientAsked, check_asked
    from dipgo_deploy.cli.searching import search_asked
    from dipgo_deploy.core.files import check_target, load_latency_table, save_schedule
    from dipgo_deploy.search.options import SearchOptions

    options = SearchOptions(
        method, ratio, kind=kind, seed=seed or 0, interval=interval, depth=depth,
        candidates=candidates, population=population, trajectories=trajectories,
        cost=None if cost is None else load_latency_table(cost),
    )  # fmt: skip
    gradient = GradientAsked(preset, iterations, polish, order, pruner, from_pruner)
    source = ModelSource(model, random_weights, dtype, meta, tuple(lora or ()), variant, revision, config)
    asked = Asked(
        source, options, sampler, steps, guidance, granularity, patterns_of(blocks), seed, images, conditions,
        guidance_scale, gradient, out, picture, limit_graphs,
    )  # fmt: skip
    check_asked(asked)
    check_target(out)
    schedule, graph = search_asked(asked)
    save_schedule(out, schedule)
    summary = _summary(schedule, graph, options)
    if as_json:
        emit({**summary, "out": str(out)})
        return
    result(_text(summary, method))
    result(f"in {out}")


def _summary(schedule: Schedule, graph: BlockGraph, options: SearchOptions) -> dict[str, Any]:
    """Asked and reached ratio, MACs per image in both conventions (guidance rows included), and what it lowers to."""
    from dipgo_deploy.core.liveness import plan_steps, pruned_ratio, schedule_macs
    from dipgo_deploy.core.program import memory_bytes
    from dipgo_deploy.lowering import lower
    from dipgo_deploy.models.sampler_reading import read_sampler
    from dipgo_deploy.search.pricing import Pricer

    program = lower(schedule, graph, read_sampler(schedule.contract.sampler))
    rows = schedule.contract.rows_per_image
    kept, full = schedule_macs(schedule, graph), graph.macs
    by_time = {"time_ratio": Pricer(graph, options.kind, options.cost).ratio(schedule.computed)} if options.cost else {}
    return {
        "asked_ratio": options.ratio,
        "ratio": pruned_ratio(schedule, graph),
        **by_time,
        "calls": sum(bool(plan.reach.pieces) for plan in plan_steps(schedule, graph)),
        "steps": schedule.steps,
        "graphs": len(program.graphs),
        "slot_bytes": memory_bytes(program, batch=1)["slots"],
        "macs": {"papers": kept.papers * rows, "full": kept.full * rows},
        "full_macs": {"papers": full.papers * rows * schedule.steps, "full": full.full * rows * schedule.steps},
    }


def _text(summary: dict[str, Any], method: str) -> str:
    from dipgo_deploy.cli.units import count_text, macs_text, mib_text

    lines = [f"{method}: ratio {summary['ratio']:.4f} (asked {summary['asked_ratio']:g})"]
    if "time_ratio" in summary:
        lines = [f"{method}: ratio {summary['time_ratio']:.4f} of the time foretold (asked {summary['asked_ratio']:g})"]
        lines += [f"ratio of MACs: {summary['ratio']:.4f}"]
    lines += [f"network calls: {summary['calls']} of {summary['steps']}"]
    lines += [f"lowers to {count_text(summary['graphs'], 'graph')}, slots {mib_text(summary['slot_bytes'])} an image"]
    for convention in ("papers", "full"):
        kept, full = summary["macs"][convention], summary["full_macs"][convention]
        lines += [f"MACs per image ({convention}): {macs_text(kept)} of {macs_text(full)}"]
    return "\n".join(lines)
