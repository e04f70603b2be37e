"""``dipgo-deploy run``: run a recipe from trace to bench, skipping stages that are up to date."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dipgo_deploy.cli.options import Json
from dipgo_deploy.cli.terminal import emit, result, say, show_progress

if TYPE_CHECKING:
    from collections.abc import Collection

    from dipgo_deploy.core.progress import Work
    from dipgo_deploy.recipes import Recipe, RunReport

__all__ = ["run", "run_shown", "show_results"]


def run(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of a shipped recipe.")],
    out: Annotated[Path | None, typer.Option(help="Output folder. Default: next to RECIPE.")] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="STAGE", help="Stop after trace, search, export, build-engine, verify, draw or bench."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as search.ratio=0.6; may be repeated."),
    ] = None,
    force: Annotated[
        list[str] | None,
        typer.Option(metavar="STAGE", help="Run this stage even if it is up to date; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Run RECIPE: trace, search, export, build-engine, verify, draw, bench. Stages that are up to date are skipped."""
    from dipgo_deploy.recipes import default_folder, find_recipe, load_recipe

    file = find_recipe(recipe)
    loaded = load_recipe(file, overrides or ())
    report = run_shown(loaded, out or default_folder(file), until, force or ())
    if as_json:
        from dataclasses import asdict

        emit({"out": str(report.out), "stages": [asdict(stage) for stage in report.stages]})
        return
    show_results(report)


def run_shown(recipe: Recipe, out: Path, until: str | None = None, force: Collection[str] = ()) -> RunReport:
    """Run a recipe with a line for every stage, and progress within a stage, on stderr."""
    from dipgo_deploy.recipes import run_recipe

    command = shlex.join(["dipgo-deploy", *sys.argv[1:]])
    work = run_recipe(recipe, out, until=until, force=force, command=command)
    return show_progress(_lines_said(work), f"running {recipe.title or 'the recipe'}")


def _lines_said(work: Work[RunReport]) -> Work[RunReport]:
    """``work`` with the line of every stage and every note printed, not shown as progress."""
    from dipgo_deploy.search.options import NOTE

    while True:
        try:
            progress = next(work)
        except StopIteration as stop:
            report: RunReport = stop.value
            return report
        stage, inner, work_name = progress.stage.partition(" / ")
        if inner and work_name != NOTE:
            yield progress
        else:
            say(f"{stage}: {progress.text}")


def show_results(report: RunReport) -> None:
    """Print the bench table, if the run made a bench, and the status of every stage."""
    measured = [stage for stage in report.stages if stage.stage == "bench"]
    if measured:
        from dipgo_deploy.bench import load_report, table

        result(table(load_report(report.out / "bench.json")))
    ran = sum(stage.status == "ran" for stage in report.stages)
    result(f"{ran} of {len(report.stages)} stages ran, results in {report.out}")
