"""The view of a pruner's file: what it was trained for, how far, and with which options."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dipgo_deploy.cli.program_view import contract_table
from dipgo_deploy.cli.units import count_text

if TYPE_CHECKING:
    from dipgo_deploy.search.dipgo.pruner_file import PrunerRecord

__all__ = ["pruner_view"]


def pruner_view(record: PrunerRecord) -> RenderableType:
    """A pruner: contract, progress, what it was trained on, and the options of the training.

    Args:
        record: the header of the pruner's file.

    Returns:
        A rich renderable.
    """
    options = Table(box=None, pad_edge=False, show_header=False)
    for name, value in asdict(record.options).items():
        if value is not None:
            options.add_row(name, str(value))
    progress = (
        f"{record.done} of {record.options.iterations} iterations in {record.seconds:.0f} s, seed {record.seed}, cost "
        f"of {record.search_cost:.0f} full trajectories"
    )
    blocks = f"{count_text(len(record.blocks), 'block')} at granularity {record.granularity}, kind {record.kind}"
    costs = f"costs in latency table {record.latency[:12]}" if record.latency else "costs in MACs"
    trained = _trained_on(record)
    heading = Text("pruner", style="bold")
    return Group(
        heading, contract_table(record.contract), Text(f"{blocks}, {costs}"), Text(progress), Text(trained), options
    )


def _trained_on(record: PrunerRecord) -> str:
    if record.prompts:
        return f"trained on {count_text(len(record.prompts), 'prompt')}"
    return f"trained on classes {', '.join(map(str, record.classes))}" if record.classes else "trained on all classes"
