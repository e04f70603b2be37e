"""``dipgo-deploy search``: make a reuse schedule for a model and a sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dipgo_deploy.cli.options import (
    Blocks,
    Config,
    Dtype,
    Granularity,
    GuidanceLayout,
    Json,
    Lora,
    Meta,
    Model,
    PresetName,
    RandomWeights,
    Revision,
    Sampler,
    Size,
    Steps,
    Variant,
    patterns_of,
)
from dipgo_deploy.cli.source import ModelSource
from dipgo_deploy.cli.terminal import emit, result, say

_METHODS = "dipgo, uniform, deepcache, fora, random, best-random, evolutionary or dpcache."


def search(
    model: Model = None,
    random_weights: RandomWeights = None,
    variant: Variant = None,
    revision: Revision = None,
    config: Config = None,
    size: Size = None,
    out: Annotated[Path, typer.Option(help="Where the schedule is written.")] = Path("schedule.json"),
    method: Annotated[str, typer.Option(help=_METHODS)] = "uniform",
    ratio: Annotated[float, typer.Option(help="Share of the full run's MACs to prune, in [0, 1).")] = 0.8,
    cost: Annotated[
        Path | None, typer.Option(help="Latency table that profile wrote: the ratio is then a share of time.")
    ] = None,
    sampler: Sampler = None,
    steps: Steps = None,
    guidance: GuidanceLayout = None,
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
    preset: Annotated[PresetName, typer.Option(help="Settings of dipgo.")] = "default",
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
    from dipgo_deploy.cli.search_view import search_summary, search_text, unmet_ratio
    from dipgo_deploy.cli.searching import search_asked
    from dipgo_deploy.core.disk import check_target
    from dipgo_deploy.core.files import load_latency_table, save_schedule
    from dipgo_deploy.search.options import SearchOptions

    options = SearchOptions(
        method, ratio, kind=kind, seed=seed or 0, interval=interval, depth=depth,
        candidates=candidates, population=population, trajectories=trajectories,
        cost=None if cost is None else load_latency_table(cost),
    )  # fmt: skip
    gradient = GradientAsked(preset, iterations, polish, order, pruner, from_pruner)
    source = ModelSource(model, random_weights, dtype, meta, tuple(lora or ()), variant, revision, config, size)
    asked = Asked(
        source, options, sampler, steps, guidance, granularity, patterns_of(blocks), seed, images, conditions,
        guidance_scale, gradient, out, picture, limit_graphs,
    )  # fmt: skip
    check_asked(asked)
    check_target(out)
    schedule, graph = search_asked(asked)
    save_schedule(out, schedule)
    summary = search_summary(schedule, graph, options)
    if warning := unmet_ratio(summary, options, limit_graphs):
        say(warning)
    if as_json:
        emit({**summary, "out": str(out)})
        return
    result(search_text(summary, method))
    result(f"in {out}")
