"""Hooks of the documentation site: pages that are generated from the code, so that they cannot grow stale.

1. ``reference/cli.md`` comes from the typer app: every command with its arguments and options.
2. ``reference/api.md`` lists the packages in the order of their imports. mkdocstrings fills in the docstrings.
3. ``changelog.md`` is CHANGELOG.md of the repository.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

PACKAGES = (
    "core", "models", "supernet", "lowering", "graphs", "search", "bundle", "trt", "runtime", "pipeline", "verify",
    "engines", "bench", "recipes",
)  # fmt: skip
"""Packages in the order of their imports. A name that does not exist is left out."""


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    pages = {
        "reference/cli.md": cli_reference(),
        "reference/api.md": api_reference(),
        "changelog.md": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace("docs/formats.md", "formats.md"),
    }
    for path, text in pages.items():
        files.append(File.generated(config, path, content=text))
    return files


def cli_reference() -> str:
    """The page of the command line, in Markdown."""
    lines = [
        "# Command line", "", "This page is generated from the program. `dipgo-deploy COMMAND --help` prints the same.",
        "", "Results go to stdout. Progress and warnings go to stderr.",
        "`--json` ends stdout with one JSON document that holds `schema_version`.", "",
    ]  # fmt: skip
    for name, command in commands().items():
        lines += [f"## {name}", "", _cell(command.help), "", f"`dipgo-deploy {name} {_usage(command)}`", ""]
        rows = [_row(command, option) for option in options(command)]
        lines += ["| option | meaning |", "|---|---|", *rows, ""]
    return "\n".join(lines)


def commands() -> dict[str, Any]:
    """Every command of the app by its name."""
    import typer

    from dipgo_deploy.cli.main import app

    return dict(typer.main.get_command(app).commands)


def options(command: Any) -> list[Any]:
    """The options of a command without ``--help``."""
    return [one for one in command.params if one.param_type_name == "option" and one.name != "help"]


def _usage(command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    names = [(one.metavar or one.name.upper(), one.required) for one in arguments]
    return " ".join([*(name if required else f"[{name}]" for name, required in names), "[OPTIONS]"])


def _row(command: Any, option: Any) -> str:
    names, meaning = option.get_help_record(command.context_class(command))
    return f"| <code>{_cell(names)}</code> | {_cell(meaning)} |"


def _cell(text: str | None) -> str:
    """One line that may stand in a cell of a table."""
    return escape(" ".join((text or "").split())).replace("|", "&#124;").replace("[", "&#91;")


def api_reference() -> str:
    """The page of the Python API, in Markdown for mkdocstrings."""
    verbs = ", ".join(f"`{name}`" for name in _verbs())
    head = f"# Python API\n\nThe verbs of the package can be imported from `dipgo_deploy` itself: {verbs}.\n"
    return "\n".join([head, *_packages()])


def _verbs() -> list[str]:
    import dipgo_deploy

    return [name for name in dipgo_deploy.__all__ if not name.startswith("__")]


def _packages() -> Iterator[str]:
    for name in PACKAGES:
        package = ROOT / "dipgo_deploy" / name
        if not (package / "__init__.py").is_file():
            continue
        yield f"::: dipgo_deploy.{name}\n"
        if name == "core":
            modules = [path.stem for path in package.glob("[a-z]*.py")]
            yield from (f"::: dipgo_deploy.core.{module}\n" for module in sorted(modules))
        # A function named after its own module is hidden by that module in the package's list.
        hidden = [verb for verb in _verbs() if _is_defined(package / f"{verb}.py", verb)]
        yield from (f"::: dipgo_deploy.{name}.{verb}.{verb}\n" for verb in hidden)


def _is_defined(module: Path, name: str) -> bool:
    return module.is_file() and f"\ndef {name}(" in module.read_text(encoding="utf-8")
