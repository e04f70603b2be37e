"""``dipgo-deploy import-schedule`` and ``export-schedule``: schedules in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dipgo_deploy.cli.options import (
    Config,
    Dtype,
    FormatName,
    GuidanceLayout,
    Json,
    Lora,
    Meta,
    Model,
    RandomWeights,
    Revision,
    Sampler,
    SamplerOptions,
    Size,
    Steps,
    Tokens,
    Variant,
)
from dipgo_deploy.cli.replacing import Force
from dipgo_deploy.cli.source import ModelSource
from dipgo_deploy.cli.terminal import emit, result, working
from dipgo_deploy.core.errors import UsageError


def import_schedule(
    form: Annotated[FormatName, typer.Option("--from", help="The tool that the schedule comes from.")],
    model: Model = None,
    random_weights: RandomWeights = None,
    variant: Variant = None,
    revision: Revision = None,
    config: Config = None,
    size: Size = None,
    tokens: Tokens = None,
    file: Annotated[Path | None, typer.Option(help="The settings as JSON. The options below override them.")] = None,
    interval: Annotated[
        int | None, typer.Option(help="Steps from one full step to the next (deepcache, fora).")
    ] = None,
    branch: Annotated[int | None, typer.Option(help="cache_branch_id: 3 x level + layer (deepcache).")] = None,
    skip_mode: Annotated[str | None, typer.Option(help="Placement of full steps: uniform (deepcache).")] = None,
    first: Annotated[int | None, typer.Option(help="First blocks always computed (cache-dit).")] = None,
    last: Annotated[int | None, typer.Option(help="Last blocks always computed (cache-dit).")] = None,
    sampler: Sampler = None,
    sampler_option: SamplerOptions = None,
    steps: Steps = None,
    guidance_layout: GuidanceLayout = None,
    lora: Lora = None,
    dtype: Dtype = "float32",
    meta: Meta = False,
    out: Annotated[Path, typer.Option(help="Where the schedule is written.")] = Path("schedule.json"),
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make MODEL's schedule from the settings of DeepCache, FORA, SmoothCache, cache-dit or a DiP-GO table."""
    from dipgo_deploy.cli.replacing import check_kind, check_same
    from dipgo_deploy.cli.search_view import say_sampler_note
    from dipgo_deploy.core.disk import check_target
    from dipgo_deploy.core.files import load_schedule, save_schedule
    from dipgo_deploy.core.liveness import pruned_ratio
    from dipgo_deploy.core.sampler_options import parse_sampler_options
    from dipgo_deploy.search.interchange import FORMATS
    from dipgo_deploy.search.interchange import import_schedule as read_schedule

    source = ModelSource(model, random_weights, dtype, meta, tuple(lora or ()), variant, revision, config, size, tokens)
    settings = {"interval": interval, "branch": branch, "skip-mode": skip_mode, "first": first, "last": last}
    document = _document(form, file, settings)
    scheduler_options = parse_sampler_options(sampler_option or ())
    check_target(out)
    check_kind(out, "schedule", force)
    from dipgo_deploy.graphs import trace
    from dipgo_deploy.models import make_contract

    with working(f"tracing {source.label}"):
        loaded = source.load()
        contract = make_contract(
            loaded, sampler=sampler, sampler_options=scheduler_options, steps=steps, guidance=guidance_layout
        )
        say_sampler_note(contract.sampler)
        graph = trace(loaded, granularity=FORMATS[form].granularity).blocks
    schedule = read_schedule(form, document, graph, contract)
    is_same = not out.exists() or (not force and load_schedule(out) == schedule)
    check_same(out, is_same, "another schedule", force)
    save_schedule(out, schedule)
    ratio = pruned_ratio(schedule, graph)
    if as_json:
        emit({"out": str(out), "from": form, "ratio": ratio, "steps": schedule.steps, "guidance": contract.guidance})
        return
    made_for = f"made for {contract.sampler.class_name}, guidance layout {contract.guidance}"
    result(f"{form}: ratio {ratio:.4f} of {schedule.steps} steps\n{made_for}\nin {out}")


def _document(form: FormatName, file: Path | None, settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the other tool: the file, overridden by options. UsageError for an option of another format."""
    from dipgo_deploy.core.disk import read_json
    from dipgo_deploy.search.interchange import FORMATS

    fields = FORMATS[form].options
    document = {} if file is None else read_json(file)
    own = document.get("cache_config", document) if form == "cache-dit" else document
    for name, value in settings.items():
        if value is not None and name not in fields:
            raise UsageError(f"--{name} is not a setting of {form}: leave it out")
        if value is not None and isinstance(own, dict):
            own[fields[name]] = value
    if not document:
        options = "--file" if form in ("smoothcache", "cache-dit", "dipgo") else f"--file or --{next(iter(fields))}"
        raise UsageError(f"no settings of {form} were given: give {options}")
    return document


def export_schedule(
    schedule: Annotated[Path, typer.Argument(metavar="SCHEDULE", help="A schedule.json.")],
    target: Annotated[FormatName, typer.Option("--to", help="The tool to write for.")],
    out: Annotated[Path, typer.Option(help="Where the JSON document is written.")],
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write SCHEDULE as settings of DeepCache, FORA, SmoothCache or cache-dit, or as a DiP-GO table."""
    import json

    from dipgo_deploy.cli.replacing import check_same
    from dipgo_deploy.core.disk import check_target, write_atomic
    from dipgo_deploy.core.file_kind import file_kind
    from dipgo_deploy.core.files import load_schedule
    from dipgo_deploy.search.interchange import export_schedule as write_schedule

    check_target(out)
    document = write_schedule(target, load_schedule(schedule))
    content = json.dumps(document) + "\n"
    is_same = not out.exists() or (not force and out.read_bytes() == content.encode())
    check_same(out, is_same, file_kind(out), force)
    write_atomic(out, content)
    if as_json:
        emit({"out": str(out), "to": target, "document": document})
        return
    result(f"in {out}")
