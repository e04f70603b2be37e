"""What a bench found: rows of contenders, as a document and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dipgo_deploy.core.blocks import Macs
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.files import write_atomic

__all__ = ["SCHEMA_VERSION", "BenchReport", "Row", "table", "to_json", "write_report"]

SCHEMA_VERSION = "1.0"
"""Version of the document that `to_json` gives; a change that breaks a reader raises the first number."""

Percentiles = Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """One contender.

    Attributes:
        name: what it is, spacing and noise levels of a plain sampler included.
        kind: ``full``, ``schedule`` or ``sampler``.
        nfe: network evaluations per image.
        macs: of the graph nodes that run, per image over the whole trajectory, guidance rows included.
        latency_ms: p50 and p90 of a whole trajectory of one batch.
        speedup: full over this one, median of the rounds' ratios.
        efficiency: ``speedup`` over the ratio of MACs (``full`` convention): 1 where time falls as arithmetic does.
        psnr_full_db: p10 and p50 over images, to the full run from the same noise.
        psnr_converged_db: the same to the converged run; None without one.
        ssim: p10 and p50 over images, to the full run.
        ssim_converged: the same to the converged run; in the table only.
        frechet: Fréchet distance to real digits; None where the model draws none.
        accuracy: share, 0..1, of the images that show their class; None likewise.
    """

    name: str
    kind: str
    nfe: int
    macs: Macs
    latency_ms: Percentiles
    speedup: float
    efficiency: float
    psnr_full_db: Percentiles
    psnr_converged_db: Percentiles | None
    ssim: Percentiles
    ssim_converged: Percentiles | None
    frechet: float | None
    accuracy: float | None


@dataclass(frozen=True)
class BenchReport:
    """All rows, the full run first, with what they were made in and for.

    ``environment`` holds versions, machine, command, options and the extractor behind Fréchet distance and accuracy;
    ``memory`` the bytes of the model's weights, of the bundle's and of its slots for one batch; ``aa_ratio`` the full
    run's duration over itself.
    """

    environment: Mapping[str, Any]
    contract: Contract
    rows: tuple[Row, ...]
    memory: Mapping[str, int]
    aa_ratio: float


def to_json(report: BenchReport) -> dict[str, Any]:
    """The report as one JSON document; what is not defined is null, every number finite."""
    document = asdict(report)
    for row in document["rows"]:
        del row["ssim_converged"]
    return json.loads(json.dumps({"schema_version": SCHEMA_VERSION, **document}, allow_nan=False))


def write_report(report: BenchReport, path: Path) -> None:
    """Write the document of `to_json` to ``path``, whole or not at all."""
    write_atomic(path, json.dumps(to_json(report), indent=1, allow_nan=False) + "\n")


_COLUMNS = (
    "", "NFE", "MACs, G\npapers/full", "ms\np50/p90", "speed-\nup", "effi-\nciency", "PSNR full\np10/p50 dB",
    "SSIM full\np10/p50", "PSNR conv.\np10/p50 dB", "SSIM conv.\np10/p50", "Fréchet", "accu-\nracy",
)  # fmt: skip


def table(report: BenchReport) -> Any:
    """The report as a rich renderable: one line per contender, then memory, noise floor and extractor."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table

    grid = Table(header_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for index, title in enumerate(_COLUMNS):
        grid.add_column(title, justify="right" if index else "left", no_wrap=True)
    for row in report.rows:
        grid.add_row(*_cells(row), style="bold" if row.kind == "schedule" else None)
    return Group(grid, *_notes(report))


def _cells(row: Row) -> list[str]:
    return [
        row.name,
        str(row.nfe),
        f"{row.macs.papers / 1e9:.4g}/{row.macs.full / 1e9:.4g}",
        _pair(row.latency_ms, "p50", "p90", ".4g"),
        f"{row.speedup:.2f}",
        f"{row.efficiency:.2f}",
        _pair(row.psnr_full_db, "p10", "p50", ".1f"),
        _pair(row.ssim, "p10", "p50", ".3f"),
        _pair(row.psnr_converged_db, "p10", "p50", ".1f"),
        _pair(row.ssim_converged, "p10", "p50", ".3f"),
        "-" if row.frechet is None else f"{row.frechet:.2f}",
        "-" if row.accuracy is None else f"{row.accuracy:.3f}",
    ]


def _pair(values: Percentiles | None, first: str, second: str, spec: str) -> str:
    return "-" if values is None else f"{values[first]:{spec}}/{values[second]:{spec}}"


def _notes(report: BenchReport) -> list[str]:
    memory = {name: f"{count / 2**20:.2f} MiB" for name, count in report.memory.items()}
    settings = report.environment.get("bench", {})
    notes = [
        f"Weights: model {memory['model_weight_bytes']}, bundle {memory['bundle_weight_bytes']}; slots "
        f"{memory['slot_bytes']} for a batch of {settings.get('batch', '?')}.",
        f"Full run over itself (A/A ratio): {report.aa_ratio:.3f}; as much as it differs from 1 is noise.",
        "Efficiency: speed-up over the ratio of MACs (full convention) of the graph nodes that run.",
    ]
    if extractor := report.environment.get("extractor"):
        floor = report.environment.get("frechet_floor")
        best = "" if floor is None else f"; as many real digits score {floor:.2f} against others"
        notes.append(f"Fréchet distance of {settings.get('images', '?')} images in the features of {extractor}{best}.")
    return notes
