"""``--help`` in groups: commands by what they are for, options by what they set. Plain text, without boxes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from typer.core import TyperCommand, TyperGroup

__all__ = ["GroupedCommand", "GroupedCommands"]

_COMMANDS: Mapping[str, tuple[str, ...]] = {
    "From a model to a schedule": ("trace", "profile", "search", "import-schedule", "export-schedule"),
    "From a schedule to a bundle and its engines": ("export", "plan", "build-engine"),
    "Use and measure a bundle": ("verify", "generate", "show", "bench"),
    "All stages at once": ("run", "demo"),
}
"""Commands in the usual order of work. The others are about this machine."""

_OTHER_COMMANDS = "This machine"

_OPTIONS: Mapping[str, tuple[str, ...]] = {
    "Model": (
        "--random-weights", "--variant", "--revision", "--config", "--size", "--lora", "--dtype", "--meta",
        "--model", "--trust-weights",
    ),
    "Blocks": ("--granularity", "--blocks"),
    "Sampler and guidance": ("--sampler", "--sampler-option", "--steps", "--guidance-layout", "--guidance-scale"),
    "Schedule": (
        "--method", "--ratio", "--latency", "--kind", "--max-graphs", "--interval", "--calls", "--depth", "--schedule",
        "--layout", "--with-schedule",
    ),
    "Methods that run the model": (
        "--conditions", "--candidates", "--population", "--trajectories", "--preset", "--iterations", "--polish",
        "--order", "--pruner", "--from-pruner",
    ),
    "Images and seeds": (
        "--class", "--prompt", "--negative-prompt", "--count", "--images", "--seed", "--tolerance", "--min-psnr",
        "--once", "--quick", "--repeats", "--converged-images", "--converged-calls", "--tuning-images",
    ),
    "Precision": ("--fp16", "--bf16", "--check-images", "--check-steps"),
    "Where and how it runs": (
        "--backend", "--device", "--batch", "--rounds", "--threads", "--cuda-graph", "--compile", "--gpu-memory",
        "--trust-engines",
    ),
    "Output": ("--out", "--picture", "--plot", "--force", "--json"),
}  # fmt: skip
"""Options by group, in the order of ``--help``. An option that is in no group belongs to the command alone."""

_OWN_OPTIONS = "Options"
_COLUMN = 24
"""Widest column of names. A longer name has its help text below."""


class GroupedCommand(TyperCommand):
    """A command whose options are printed in groups."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then options group by group."""
        parameters = self.get_params(ctx)
        _write(formatter, "Arguments", ctx, (one for one in parameters if one.param_type_name == "argument"))
        options = [one for one in parameters if one.param_type_name == "option" and one.name != "help"]
        for title, names in _groups(ctx.command.name, options):
            _write(formatter, title, ctx, (one for one in options if one.opts[-1] in names))


class GroupedCommands(TyperGroup):
    """The program, whose commands are printed in groups with their whole first sentence."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands group by group."""
        grouped = {name for names in _COMMANDS.values() for name in names}
        others = tuple(name for name in self.list_commands(ctx) if name not in grouped)
        with formatter.section("Commands"):
            pass
        for title, names in {**_COMMANDS, _OTHER_COMMANDS: others}.items():
            with formatter.section(title):
                formatter.write_dl([(name, (self.commands[name].help or "").strip()) for name in names])


def _groups(command: str | None, options: Iterable[Any]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The command's own options first, and the output last."""
    grouped = {name for names in _OPTIONS.values() for name in names}
    if command == "cache":  # its --kind is not that of a schedule
        grouped = {"--json"}
    yield _OWN_OPTIONS, tuple(one.opts[-1] for one in options if one.opts[-1] not in grouped)
    yield from ((title, tuple(grouped.intersection(names))) for title, names in _OPTIONS.items())


def _write(formatter: Any, title: str, ctx: Any, parameters: Iterable[Any]) -> None:
    """Write one group. A group without parameters is left out."""
    records = [record for one in parameters if (record := one.get_help_record(ctx))]
    if records:
        with formatter.section(title):
            formatter.write_dl(records, col_max=_COLUMN)
