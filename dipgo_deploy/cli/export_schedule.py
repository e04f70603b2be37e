"""``dipgo-deploy export-schedule``: a schedule as another tool's settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dipgo_deploy.cli.options import FormatName, Json
from dipgo_deploy.cli.output import emit, result


def export_schedule(
    schedule: Annotated[Path, typer.Argument(metavar="SCHEDULE", help="A schedule.json.")],
    target: Annotated[FormatName, typer.Option("--to", help="Whose format it becomes.")],
    out: Annotated[Path, typer.Option(help="Where the JSON document is written.")],
    as_json: Json = False,
) -> None:
    """Write SCHEDULE as settings of DeepCache, FORA, SmoothCache or cache-dit, or as a DiP-GO table."""
    import json

    from dipgo_deploy.core.disk import check_target, write_atomic
    from dipgo_deploy.core.files import load_schedule
    from dipgo_deploy.search.interchange import export_schedule as exported

    check_target(out)
    document = exported(target, load_schedule(schedule))
    write_atomic(out, json.dumps(document) + "\n")
    if as_json:
        emit({"out": str(out), "to": target, "document": document})
        return
    result(f"in {out}")
