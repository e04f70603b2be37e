"""``dipgo-deploy``: the app, and how every outcome becomes an exit code and at most one line on stderr.

Exit codes: 0 done; 1 unexpected failure; 2 usage; 3 bad, unsafe or incompatible input; 4 a quality or accuracy gate not
met; 5 something missing in the environment; 130 interrupted. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import TyperException

from dipgo_deploy import __version__
from dipgo_deploy.cli.bench import bench
from dipgo_deploy.cli.build_engine import build_engine
from dipgo_deploy.cli.demo import demo
from dipgo_deploy.cli.doctor import doctor
from dipgo_deploy.cli.env import env
from dipgo_deploy.cli.export import export
from dipgo_deploy.cli.export_schedule import export_schedule
from dipgo_deploy.cli.generate import generate
from dipgo_deploy.cli.import_schedule import import_schedule
from dipgo_deploy.cli.output import say
from dipgo_deploy.cli.plan import plan
from dipgo_deploy.cli.profile import profile
from dipgo_deploy.cli.search import search
from dipgo_deploy.cli.show import show
from dipgo_deploy.cli.trace import trace
from dipgo_deploy.cli.verify import verify
from dipgo_deploy.core.errors import DipgoError, InputError, MissingError, UsageError

__all__ = ["app", "main", "run"]

_EXTRAS = {"onnxruntime": "cpu", "tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}
"""Optional modules and the extra that installs each."""

_INTERRUPTED = 130

app = typer.Typer(
    help="Prune, cut and run diffusers denoisers as straight-line programs.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
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
    demo,
    env,
    doctor,
):
    app.command()(_command)


def _print_version(wanted: bool) -> None:
    if wanted:
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
    """Run one command line in this process and return its exit code; no exception leaves but SystemExit."""
    try:
        code = app(args=list(arguments), prog_name="dipgo-deploy", standalone_mode=False)
        if code == _INTERRUPTED:  # typer turns the exception into this code
            return _fail("interrupted", _INTERRUPTED)
        return code if isinstance(code, int) else 0
    except TyperException as error:
        return _fail(f"{error.format_message()} See dipgo-deploy --help", UsageError.exit_code)
    except Exception as error:
        return _report(error)


def _report(error: Exception) -> int:
    if os.environ.get("DIPGO_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, DipgoError):
        return _fail(str(error), error.exit_code)
    extra = _EXTRAS.get((error.name or "").partition(".")[0]) if isinstance(error, ImportError) else None
    if extra:
        return _fail(f"{error}: pip install 'dipgo-deploy[{extra}]'", MissingError.exit_code)
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror}: check path, permissions and free space", InputError.exit_code)
    return _fail(f"{type(error).__name__}: {error} (set DIPGO_TRACEBACK=1 to see where)", 1)


def _fail(message: str, code: int) -> int:
    say("error: " + " ".join(message.split()))
    return code


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
