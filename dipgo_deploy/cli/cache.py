"""``dipgo-deploy cache``: list the user's cache, or clear it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dipgo_deploy.cli.options import Json
from dipgo_deploy.cli.terminal import emit, result
from dipgo_deploy.cli.units import count_text, mib_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dipgo_deploy.core.user_cache import CacheEntry


def cache(
    kind: Annotated[
        Literal["traces", "engines", "digests", "teachers"] | None,
        typer.Option(help="Only this kind. Default: all kinds."),
    ] = None,
    clear: Annotated[
        bool,
        typer.Option("--clear", help="Remove the entries. Engines that were built here are then no longer trusted."),
    ] = False,
    as_json: Json = False,
) -> None:
    """List the user's cache: traces, notes of engines, digests of large files, trajectories. With --clear, empty it."""
    from dipgo_deploy.core.disk import cache_folder
    from dipgo_deploy.core.user_cache import CACHE_KINDS, cache_entries, clear_cache

    kinds = CACHE_KINDS if kind is None else (kind,)
    entries = clear_cache(kinds) if clear else cache_entries(kinds)
    total = sum(entry.bytes for entry in entries)
    if as_json:
        emit({"folder": str(cache_folder()), "cleared": clear, "bytes": total, "entries": [_plain(e) for e in entries]})
        return
    if entries and not clear:
        _print_table(entries)
    number = count_text(len(entries), "entry").replace("entrys", "entries")
    result(f"{'removed ' if clear else ''}{number}, {mib_text(total)}, in {cache_folder()}")


def _plain(entry: CacheEntry) -> dict[str, object]:
    return {**vars(entry), "path": str(entry.path)}


def _print_table(entries: Sequence[CacheEntry]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("kind", "what", "size", "last used", "path"):
        table.add_column(name, overflow="fold", justify="right" if name == "size" else "left")
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used))
        table.add_row(entry.kind, entry.what, mib_text(entry.bytes), used, entry.path.name)
    result(table)
