"""A bench report as a table for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dipgo_deploy.bench.options import BenchOptions
from dipgo_deploy.bench.report import BenchReport, Percentiles, Row
from dipgo_deploy.core.metrics import IDENTICAL, psnr_text

__all__ = ["quick_note", "table"]


@dataclass(frozen=True)
class _Column:
    title: str
    cell: Callable[[Row], str | None]


_COLUMNS = (
    _Column("", lambda row: row.name),
    _Column("backend", lambda row: row.backend),
    _Column("NFE", lambda row: str(row.nfe)),
    _Column("MACs, G\npapers/full", lambda row: f"{row.macs.papers / 1e9:.4g}/{row.macs.full / 1e9:.4g}"),
    _Column("ms\np50/p90", lambda row: _pair(row.latency_ms, "p50", "p90", ".4g")),
    _Column("speed-\nup", lambda row: f"{row.speedup:.2f}"),
    _Column("end to\nend", lambda row: _number(row.speedup_end_to_end, ".2f")),
    _Column("first\nimage, s", lambda row: None if row.first_image_ms is None else f"{row.first_image_ms / 1e3:.2f}"),
    _Column("device\nMiB", lambda row: None if row.device_bytes is None else f"{row.device_bytes / 2**20:.0f}"),
    _Column("effi-\nciency", lambda row: f"{row.efficiency:.2f}"),
    _Column("PSNR full\np10/p50 dB", lambda row: _psnr(row.psnr_full_db)),
    _Column("SSIM full\np10/p50", lambda row: _pair(row.ssim, "p10", "p50", ".3f")),
    _Column("PSNR conv.\np10/p50 dB", lambda row: _psnr(row.psnr_converged_db)),
    _Column("SSIM conv.\np10/p50", lambda row: _pair(row.ssim_converged, "p10", "p50", ".3f")),
    _Column("Fréchet", lambda row: _number(row.frechet, ".2f")),
    _Column("accu-\nracy", lambda row: _number(row.accuracy, ".3f")),
)


def table(report: BenchReport) -> Any:
    """The report as a rich renderable: one line per contender, then notes on memory, noise floor and units.

    Columns without values are omitted, and so is the backend if all rows have the same backend.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    grid = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    columns = [column for column in _COLUMNS if any(column.cell(row) is not None for row in report.rows)]
    if len({row.backend for row in report.rows}) == 1:
        columns = [column for column in columns if column.title != "backend"]
    for column in columns:
        grid.add_column(column.title, justify="right" if column.title else "left", no_wrap=bool(column.title))
    for row in report.rows:
        cells = [Text(column.cell(row) or "-") for column in columns]  # Text: a folder's name may look like markup
        grid.add_row(*cells, style="bold" if row.kind == "schedule" else None)
    return Group(grid, *(Text(note) for note in _notes(report)))


def _number(value: float | None, spec: str) -> str | None:
    return None if value is None else f"{value:{spec}}"


def _pair(values: Percentiles | None, first: str, second: str, spec: str) -> str | None:
    return None if values is None else f"{values[first]:{spec}}/{values[second]:{spec}}"


def _psnr(values: Percentiles | None) -> str | None:
    """p10 and p50 with the wider half of the median's interval, such as ``32.1/35.0±0.4``."""
    if values is None:
        return None
    low, median = psnr_text(values["p10"], ""), psnr_text(values["p50"], "")
    if low == median == IDENTICAL:
        return IDENTICAL
    half = max(values["p50_high"] - values["p50"], values["p50"] - values["p50_low"])
    return f"{low}/{median}" if median == IDENTICAL else f"{low}/{median}±{half:.1f}"


def _notes(report: BenchReport) -> Iterator[str]:
    settings = report.environment.get("bench", {})
    if settings.get("quick"):
        yield f"{quick_note(report)} {_skipped_by_quick(settings)}"
    yield from _engine_notes(report)
    model = _mib(report.memory["model_weight_bytes"])
    sizes = (
        f"{row.name}: weights {_mib(row.weight_bytes)}, slots {_mib(row.slot_bytes)}"
        for row in report.rows
        if row.kind == "schedule"
    )
    yield f"Model: weights {model}. {'; '.join(sizes)} for a batch of {settings.get('batch', '?')}."
    yield f"Full run over itself (A/A ratio): {report.aa_ratio:.3f}. The distance from 1 is noise."
    yield "Efficiency: speed-up over the ratio of MACs (full convention) of the graph nodes that run."
    yield "±: the bootstrap 95 % interval of the median over images."
    if report.components_ms:
        parts = ", ".join(f"{name} {ms:.4g} ms" for name, ms in report.components_ms.items())
        yield f"End to end: with {parts} on both sides (PyTorch, one prompt, a batch of latents)."
    yield from (f"{line}." for line in report.left_out)
    if extractor := report.environment.get("extractor"):
        floor = report.environment.get("frechet_floor")
        real = "" if floor is None else f". As many real digits score {floor:.2f} against others"
        yield f"Fréchet distance of {settings.get('images', '?')} images in the features of {extractor}{real}."


def quick_note(report: BenchReport) -> str:
    """The limits of a quick bench's numbers."""
    settings = report.environment["bench"]
    return (
        f"Quick bench, not for publication: {settings['images']} images, {settings['repeats']} rounds, "
        f"converged run of {settings['converged_calls']} calls."
    )


def _skipped_by_quick(settings: Mapping[str, Any]) -> str:
    """What a bench has that is not quick, and what the difference costs."""
    whole = BenchOptions()
    return (
        f"A whole bench has {whole.images} images, {whole.repeats} rounds and a converged run of "
        f"{whole.converged_calls} calls, and tunes the plain samplers on {whole.tuning_images} images. Here they were "
        f"tuned on {settings.get('tuning_images', '?')}, so they may look worse than they are."
    )


def _engine_notes(report: BenchReport) -> Iterator[str]:
    for row in report.rows:
        if row.engine_bytes is not None and row.build_seconds is not None:
            yield f"{row.name}: engines {_mib(row.engine_bytes)}, built in {row.build_seconds:.0f} s."
    backends = {row.backend for row in report.rows if row.backend is not None}
    if len(backends) > 1:
        yield f"Rows run on {' and '.join(sorted(backends))}: part of a speed-up across backends is the backend's."


def _mib(count: int) -> str:
    return f"{count / 2**20:.2f} MiB"
