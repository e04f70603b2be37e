"""``dipgo-deploy demo``: print what this machine can do, run the shipped recipe ``demo``, suggest what to try next."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dipgo_deploy.cli.environment import doctor
from dipgo_deploy.cli.options import Json
from dipgo_deploy.cli.run import run_shown, show_results
from dipgo_deploy.cli.terminal import emit, say

if TYPE_CHECKING:
    from dipgo_deploy.recipes import Recipe

__all__ = ["demo"]


def demo(
    out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """Run the whole pipeline on a shipped model: trace, search, export, verify, draw, bench."""
    from dipgo_deploy.core.disk import check_target
    from dipgo_deploy.recipes import find_recipe, load_recipe

    check_target(out, folder=True)
    started = time.monotonic()
    recipe = load_recipe(find_recipe("demo"))
    doctor()
    say(f"The gradient search starts from the pruner shipped for {recipe.model.source}: most of its training is done.")
    report = run_shown(recipe, out)
    show_results(report)
    say(f"\nDone in {time.monotonic() - started:.0f} s. Look at these:")
    for picture in sorted(out.glob("*.png")):
        say(f"  {picture}")
    say(_next_steps(out, recipe))
    if as_json:
        from dipgo_deploy.bench import load_report, to_json

        emit(to_json(load_report(out / "bench.json")))


def _next_steps(out: Path, recipe: Recipe) -> str:
    model, main = recipe.model.source, out / recipe.search.method
    return "\n".join(
        (
            "Then try:",
            f"  dipgo-deploy show {main}",
            f"  dipgo-deploy generate {main} --class 7 --seed 1 --out seven.png",
            f"  dipgo-deploy search {model} --method dipgo --from-pruner {main}.pruner --ratio 0.6 --out milder.json",
            "  dipgo-deploy search digits-dit --granularity branch --kind residual --method random --ratio 0.5 "
            "--out dit.json",
            f"  dipgo-deploy export {model} --schedule {main}.json --layout segments --out s",
            f"  dipgo-deploy run demo --out {out} --set search.ratio=0.6",
        )
    )
