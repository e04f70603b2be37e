"""Schedules in the formats of other tools, read and written.

Each format is a module with its document (a dataclass of the tool's field names), a reader and a writer. The reader
makes a `Schedule` for a traced model. The writer expresses a `Schedule` in the format, or refuses it and names the
first step and block that the format cannot express.
"""

from __future__ import annotations

from dipgo_deploy.search.interchange.formats import FORMATS, Format, export_schedule, import_schedule

__all__ = ["FORMATS", "Format", "export_schedule", "import_schedule"]
