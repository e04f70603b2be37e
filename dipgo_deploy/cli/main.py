"""``dipgo-deploy``: the app with all its commands. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from dipgo_deploy import __version__
from dipgo_deploy.cli.bench import bench
from dipgo_deploy.cli.build_engine import build_engine
from dipgo_deploy.cli.cache import cache
from dipgo_deploy.cli.demo import demo
from dipgo_deploy.cli.environment import doctor, env
from dipgo_deploy.cli.export import export
from dipgo_deploy.cli.generate import generate
from dipgo_deploy.cli.help_format import GroupedCommand, GroupedCommands
from dipgo_deploy.cli.interchange import export_schedule, import_schedule
from dipgo_deploy.cli.outcome import exit_code, signals_interrupt
from dipgo_deploy.cli.plan import plan
from dipgo_deploy.cli.profile import profile
from dipgo_deploy.cli.run import run as run_command
from dipgo_deploy.cli.search import search
from dipgo_deploy.cli.show import show
from dipgo_deploy.cli.terminal import say
from dipgo_deploy.cli.trace import trace
from dipgo_deploy.cli.verify import verify
from dipgo_deploy.core.errors import UsageError

__all__ = ["app", "main", "run"]

app = typer.Typer(
    cls=GroupedCommands,
    help="Prune, cut and run diffusers denoisers as straight-line programs.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
"""All commands by name."""

for _command in (
    trace,
    profile,
    search,
    import_schedule,
    export_schedule,
    export,
    plan,
    build_engine,
    verify,
    generate,
    show,
    bench,
    run_command,
    demo,
    env,
    doctor,
    cache,
):
    app.command(cls=GroupedCommand)(_command)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"dipgo-deploy {__version__}")
        raise typer.Exit()


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        say(context.get_help())
        raise typer.Exit(UsageError.exit_code)


def run(arguments: Sequence[str]) -> int:
    """Run one command line in this process and return its exit code. Raises nothing but SystemExit."""
    return exit_code(app, arguments)


def main() -> None:
    """Entry point of the console script."""
    warnings.showwarning = partial(_show_warning, warnings.showwarning)
    with signals_interrupt():
        code = run(sys.argv[1:])
    sys.exit(code)


def _show_warning(
    show: Callable[..., None], message: Warning | str, category: type[Warning], filename: str, *rest: Any
) -> None:
    """Print a warning of this package as one line, without its place in the code. Others are shown as usual."""
    if issubclass(category, UserWarning) and Path(filename).is_relative_to(Path(__file__).parents[1]):
        say(f"warning: {message}")
    else:
        show(message, category, filename, *rest)


if __name__ == "__main__":
    main()
