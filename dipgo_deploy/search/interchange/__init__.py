"""Schedules in the formats of other tools, read and written: the same schedule, said in their words.

Each format is a module with its document (a dataclass of the tool's own field names), a reader that makes a `Schedule`
for a traced model, and a writer that says a `Schedule` in the format or refuses it with the first step and block that
the format has no word for.
"""

from __future__ import annotations

from dipgo_deploy.search.interchange.formats import FORMATS, Format, export_schedule, import_schedule

__all__ = ["FORMATS", "Format", "export_schedule", "import_schedule"]
