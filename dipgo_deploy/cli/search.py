"""``dipgo-deploy search``: make a reuse schedule for a model and a sampler."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dipgo_deploy.cli.options import (
    Blocks,
    Config,
    Dtype,
    Granularity,
    GuidanceLayout,
    Json,
    Lora,
    MaxGraphs,
    Meta,
    Model,
    PresetName,
    RandomWeights,
    Revision,
    Sampler,
    SamplerOptions,
    Size,
    Steps,
    Tokens,
    Variant,
    patterns_of,
)
from dipgo_deploy.cli.replacing import Force
from dipgo_deploy.cli.source import ModelSource
from dipgo_deploy.cli.terminal import emit, result, say, show_progress, working
from dipgo_deploy.core.errors import UsageError

if TYPE_CHECKING:
    from dipgo_deploy.core.progress import Work
    from dipgo_deploy.core.schedule import Schedule

_METHODS = "fit, learned, dipgo, uniform, deepcache, fora, random, best-random, evolutionary or dpcache."


def search(
    model: Model = None,
    random_weights: RandomWeights = None,
    variant: Variant = None,
    revision: Revision = None,
    config: Config = None,
    size: Size = None,
    tokens: Tokens = None,
    out: Annotated[Path, typer.Option(help="File for the schedule.")] = Path("schedule.json"),
    method: Annotated[str, typer.Option(help=_METHODS)] = "uniform",
    ratio: Annotated[float, typer.Option(help="Share of the full run's MACs to prune, in [0, 1).")] = 0.8,
    latency: Annotated[
        Path | None, typer.Option(help="Latency table from profile. The ratio is then a share of time.")
    ] = None,
    sampler: Sampler = None,
    sampler_option: SamplerOptions = None,
    steps: Steps = None,
    guidance_layout: GuidanceLayout = None,
    granularity: Granularity = "stage",
    blocks: Blocks = None,
    lora: Lora = None,
    kind: Annotated[Literal["output", "residual"], typer.Option(help="What is stored for reuse.")] = "output",
    interval: Annotated[int | None, typer.Option(help="Steps from one full step to the next, at any ratio.")] = None,
    calls: Annotated[
        int | None,
        typer.Option(help="Network calls: computed steps (uniform), or steps of the learned sampler (fit, learned)."),
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Blocks per end in shallow steps (deepcache).")] = None,
    seed: Annotated[int | None, typer.Option(help="Random seed. Default: 0.")] = None,
    candidates: Annotated[int | None, typer.Option(help="Random schedules to evaluate (best-random).")] = None,
    population: Annotated[int | None, typer.Option(help="Schedules of a generation (evolutionary).")] = None,
    trajectories: Annotated[
        int | None,
        typer.Option(help="Budget in full trajectories (evolutionary), or images to learn from (fit, learned)."),
    ] = None,
    teacher: Annotated[
        Literal["full", "converged"] | None,
        typer.Option(help="Run to fit: the full run or the exact one (fit, learned)."),
    ] = None,
    memory: Annotated[
        int | None, typer.Option(help="Outputs that one step of a learned sampler reads (fit, learned).")
    ] = None,
    loss: Annotated[
        Literal["log-mse", "perceptual"] | None, typer.Option(help="What is compared with the teacher (learned).")
    ] = None,
    features: Annotated[
        str | None, typer.Option(metavar="MODULE:ATTRIBUTE", help="Network of the perceptual loss (learned).")
    ] = None,
    training: Annotated[
        Path | None, typer.Option(help="File of the training. It continues from an existing file (learned).")
    ] = None,
    images: Annotated[int | None, typer.Option(help="Images for evaluating schedules. Default: 8.")] = None,
    conditions: Annotated[
        Path | None, typer.Option(help="File of class numbers or prompts, one a line, to search on.")
    ] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=0.0, help="Guidance scale to search at.")] = None,
    preset: Annotated[PresetName, typer.Option(help="Settings of dipgo.")] = "default",
    iterations: Annotated[int | None, typer.Option(help="Gradient steps (dipgo, learned).")] = None,
    polish: Annotated[
        int | None, typer.Option(help="Budget of exchanges after training, in trajectories. 0 for none (dipgo).")
    ] = None,
    order: Annotated[
        Literal["bisection", "greedy"] | None, typer.Option(help="How scores become a schedule (dipgo).")
    ] = None,
    pruner: Annotated[Path | None, typer.Option(help="File of the pruner. Training resumes from it.")] = None,
    from_pruner: Annotated[Path | None, typer.Option(help="Use this trained pruner, for any ratio.")] = None,
    max_graphs: MaxGraphs = None,
    dtype: Dtype = "float32",
    meta: Meta = False,
    picture: Annotated[Path | None, typer.Option(help="Draw learned scores and schedule (.png or .svg).")] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Search a schedule for MODEL that prunes the requested share of MACs."""
    from dipgo_deploy.cli import replacing
    from dipgo_deploy.cli.conditions import read_conditions
    from dipgo_deploy.cli.search_view import draw_schedule, say_sampler_note, search_summary, search_text
    from dipgo_deploy.core.disk import check_target
    from dipgo_deploy.core.files import load_latency_table, save_schedule
    from dipgo_deploy.core.sampler_options import parse_sampler_options
    from dipgo_deploy.search import SearchOptions, method_options

    if method == "dipgo" and from_pruner is None:
        pruner = pruner or out.with_suffix(".pruner")
    if method == "learned":
        training = training or out.with_suffix(".training")
    settings = method_options(
        method, preset, interval=interval, calls=calls, depth=depth, candidates=candidates, population=population,
        trajectories=trajectories, iterations=iterations, polish=polish, order=order, pruner=pruner,
        from_pruner=from_pruner, teacher=teacher, memory=memory, loss=loss, features=features, training=training,
    )  # fmt: skip
    if from_pruner is not None and seed is not None:
        # SearchOptions cannot tell seed 0 from a seed that is left out.
        raise UsageError("seed belongs to training, but from_pruner names a trained pruner: leave one out")
    scheduler_options = parse_sampler_options(sampler_option or ())
    texts = read_conditions(conditions)
    options = SearchOptions(
        method, ratio, kind=kind, seed=seed or 0, settings=settings, granularity=granularity,
        patterns=patterns_of(blocks), max_graphs=max_graphs, images=images, classes=texts.classes,
        prompts=texts.prompts, guidance_scale=guidance_scale,
        latency=None if latency is None else load_latency_table(latency),
    )  # fmt: skip
    if out in (from_pruner or pruner, training):
        raise UsageError(f"{out} would be the schedule and the {'training' if training else 'pruner'}: rename one")
    check_target(out)
    replacing.check_kind(out, "schedule", force)
    if from_pruner is not None:
        from dipgo_deploy.search.dipgo.pruner_file import read_record

        read_record(from_pruner)  # Refuses another file before the model is loaded.
    if picture is not None:
        if picture.suffix not in (".png", ".svg"):
            raise UsageError(f"{picture} ends in neither .png nor .svg: name a picture")
        check_target(picture)
        replacing.check_picture_target(picture, force, "--picture")
    source = ModelSource(model, random_weights, dtype, meta, tuple(lora or ()), variant, revision, config, size, tokens)
    from dipgo_deploy.graphs import trace
    from dipgo_deploy.models import make_contract
    from dipgo_deploy.search.run import search as search_model

    with working(f"tracing {source.label}"):
        loaded = source.load()
        contract = make_contract(
            loaded, sampler=sampler, sampler_options=scheduler_options, steps=steps, guidance=guidance_layout
        )
        say_sampler_note(contract.sampler)
        inputs = replacing.search_inputs(contract, options)
        replacing.check_schedule_target(out, inputs, force)
        graph = trace(loaded, granularity=granularity, patterns=options.patterns).blocks
    work = search_model(loaded, contract, options, blocks=graph)
    schedule = show_progress(_notes_said(work), f"searching by {method}")
    save_schedule(out, replacing.with_seal(schedule, inputs))
    if picture is not None:
        draw_schedule(picture, schedule, graph, from_pruner or pruner)
    summary = search_summary(schedule, graph, options)
    if as_json:
        emit({**summary, "out": str(out)})
        return
    result(search_text(summary, method))
    result(f"in {out}")


def _notes_said(work: Work[Schedule]) -> Work[Schedule]:
    """``work`` with every note printed as a line, not as progress."""
    from dipgo_deploy.search.options import NOTE

    while True:
        try:
            progress = next(work)
        except StopIteration as stop:
            schedule: Schedule = stop.value
            return schedule
        if progress.stage == NOTE:
            say(progress.text)
        else:
            yield progress
