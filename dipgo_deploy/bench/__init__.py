"""Bench: schedules measured next to the full model and plain samplers, and pictures of schedules, images and benches.

Public names are imported on first use, since pictures need no runtime.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "BenchOptions": "options",
    "BenchReport": "report",
    "QUICK": "options",
    "Row": "report",
    "bench": "measure",
    "load_report": "report",
    "table": "report_table",
    "to_json": "report",
    "write_report": "report",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    """Import a public name from its module the first time it is used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'dipgo_deploy.bench' has no attribute {name!r}")
    return getattr(import_module(f"dipgo_deploy.bench.{_HOMES[name]}"), name)
