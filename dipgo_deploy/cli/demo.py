"""``dipgo-deploy demo``: the whole way on a shipped model, as the command lines that one would type oneself."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from dipgo_deploy.cli.options import Json
from dipgo_deploy.cli.outcome import exit_code
from dipgo_deploy.cli.terminal import say

__all__ = ["DemoOptions", "demo", "demo_commands"]


@dataclass(frozen=True)
class DemoOptions:
    """What the demo runs: few images, so that it ends within minutes on two cores."""

    model: str = "digits-unet"
    sampler: str = "ddim"
    steps: int = 50
    guidance: str = "none"
    schedules: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("uniform", ("--ratio", "0.8")),
        ("deepcache", ("--ratio", "0.5", "--granularity", "layer")),
        ("dipgo", ("--ratio", "0.8")),
    )
    searched: str = "dipgo"
    benched: tuple[str, ...] = ("uniform", "dipgo")
    bench_arguments: tuple[str, ...] = (
        *("--repeats", "5", "--images", "128", "--tuning-images", "8"),
        *("--converged-images", "16", "--converged-calls", "1000"),
    )


def demo_commands(options: DemoOptions, folder: Path) -> Iterator[list[str]]:
    """The argument lists of all steps, in order; everything is written below ``folder``."""
    yield ["doctor"]
    yield ["trace", options.model]
    for method, wanted in options.schedules:
        yield from _way_of(method, wanted, options, folder)
    plot = ["--plot", str(folder / "bench.png")]
    yield ["bench", *(str(folder / name) for name in options.benched), *options.bench_arguments, *plot]


def _way_of(method: str, wanted: tuple[str, ...], options: DemoOptions, folder: Path) -> Iterator[list[str]]:
    """One schedule from its search to a grid of images."""
    schedule, bundle = str(folder / f"{method}.json"), str(folder / method)
    made_for = ["--sampler", options.sampler, "--steps", str(options.steps), "--guidance", options.guidance]
    learnt = method == options.searched
    picture = ["--picture", str(folder / f"{method}-scores.png")] if learnt else []
    yield ["search", options.model, *made_for, "--method", method, *wanted, "--out", schedule, *picture]
    yield ["show", schedule, "--out", str(folder / f"{method}.png")]
    yield ["export", options.model, "--schedule", schedule, "--out", bundle]
    yield ["verify", bundle]
    yield ["generate", bundle, "--seed", "0", "--out", str(folder / f"{method}-grid.png")]


def demo(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path("demo"),
    as_json: Json = False,
) -> None:
    """Run the whole way on a shipped model: trace, search, export, verify, generate, bench."""
    from dipgo_deploy.core.disk import check_target

    check_target(out, folder=True)
    options, started = DemoOptions(), time.monotonic()
    whole = context.find_root().command
    _lay_out_pruner(options, out)
    for arguments in demo_commands(options, out):
        # The bench comes last: with --json its document is the last line of stdout.
        arguments += ["--json"] if as_json and arguments[0] == "bench" else []
        say(f"\n$ dipgo-deploy {shlex.join(arguments)}")
        code = exit_code(whole, arguments)
        if code:
            raise typer.Exit(code)
    say(f"\nDone in {time.monotonic() - started:.0f} s. Look at these:")
    for picture in sorted(out.glob("*.png")):
        say(f"  {picture}")
    say(_next_steps(out, options))


def _lay_out_pruner(options: DemoOptions, out: Path) -> None:
    """Put the shipped pruner where the search looks for one: what is left of its training fits into a demo."""
    from dipgo_deploy.core.disk import write_atomic
    from dipgo_deploy.search.dipgo.pruner_file import read_record, shipped_pruner

    shipped = shipped_pruner(options.model)
    record = read_record(shipped)
    write_atomic(out / f"{options.searched}.pruner", shipped.read_bytes())
    say(
        f"The gradient search goes on from a shipped pruner of {options.model}: {record.done} of its "
        f"{record.options.iterations} iterations were made before."
    )


def _next_steps(out: Path, options: DemoOptions) -> str:
    return "\n".join(
        (
            "Then try:",
            f"  dipgo-deploy show {out / options.searched}",
            f"  dipgo-deploy generate {out / options.searched} --class 7 --seed 1 --out seven.png",
            f"  dipgo-deploy search {options.model} --method dipgo --from-pruner {out / options.searched}.pruner"
            " --ratio 0.6",
            "  dipgo-deploy search digits-dit --granularity branch --kind residual --method random --ratio 0.5",
            f"  dipgo-deploy export {options.model} --schedule {out / options.searched}.json --layout segments --out s",
        )
    )
