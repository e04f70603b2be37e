"""The result of a bench: rows of contenders, and the document that stores the rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict

from dipgo_deploy.core.blocks import Macs
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import load_document

__all__ = [
    "SCHEMA_VERSION",
    "BenchReport",
    "Kind",
    "LeftOut",
    "Percentiles",
    "Row",
    "load_report",
    "to_json",
    "write_report",
]

SCHEMA_VERSION = "1.3"
"""Version of the document. A breaking change raises the major version."""

Kind = Literal["full", "schedule", "sampler"]
"""Kinds of contenders."""

Percentiles = Mapping[str, float]

_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
_PSNR = ("p10", "p50", "p50_low", "p50_high")
_PERCENTILES = {
    "latency_ms": ("p50", "p90"),
    "psnr_full_db": _PSNR,
    "psnr_converged_db": _PSNR,
    "ssim": ("p10", "p50"),
    "ssim_converged": ("p10", "p50"),
}


@dataclass(frozen=True)
class LeftOut:
    """A row or part that is missing from a report, and the reason. As a string, both in one sentence."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} is left out: {self.reason}"


@dataclass(frozen=True)
class Row:
    """One contender.

    Attributes:
        name: a schedule's folder or file, or a sampler with its steps, spacing and noise levels.
        kind: ``full``, ``schedule`` or ``sampler``.
        nfe: network evaluations per image.
        macs: MACs of the graph nodes that run, per image over the whole trajectory, guidance rows included.
        latency_ms: p50 and p90 of a whole trajectory of one batch.
        speedup: full run over this row, median of the rounds' ratios.
        speedup_end_to_end: the same with ``components_ms`` on both sides. None without components.
        efficiency: ``speedup`` over the ratio of MACs (``full`` convention). 1 if time falls in proportion to MACs.
        psnr_full_db: p10 and p50 over images, to the full run from the same noise. p50_low and p50_high are the
            bootstrap 95 % interval of p50 over images.
        psnr_converged_db: the same to the converged run. None without a converged run.
        ssim: p10 and p50 over images, to the full run.
        ssim_converged: the same to the converged run. None without a converged run.
        frechet: Fréchet distance to real digits. None for a model that does not draw digits.
        accuracy: share of the images that show their class, from 0 to 1. None for a model that does not draw digits.
        weight_bytes: bytes of the weights of all graphs. Shared weights count once.
        slot_bytes: memory of a run of one batch without weights and activations.
        first_image_ms: time from a cold start to the first batch, with inputs prepared. None for a plain sampler.
            The full run also cuts its graph. On ``torch``, the first row of a bundle loads the model for all rows.
        device_bytes: GPU memory allocated until then. None without a GPU, or if other processes use the GPU.
        build_seconds: time to build all engines. None without engines.
        engine_bytes: size of all engines. None without engines.
        backend: ``tensorrt``, ``rtx``, or another backend with its device, such as ``onnxruntime-cuda``. None in
            documents before 1.3.
    """

    name: str
    kind: Kind
    nfe: int
    macs: Macs
    latency_ms: Percentiles
    speedup: float
    speedup_end_to_end: float | None
    efficiency: float
    psnr_full_db: Percentiles
    psnr_converged_db: Percentiles | None
    ssim: Percentiles
    ssim_converged: Percentiles | None
    frechet: float | None
    accuracy: float | None
    weight_bytes: int
    slot_bytes: int
    first_image_ms: float | None = None
    device_bytes: int | None = None
    build_seconds: float | None = None
    engine_bytes: int | None = None
    backend: str | None = None

    __pydantic_config__ = _STRICT


@dataclass(frozen=True)
class BenchReport:
    """All rows, the full run first.

    Attributes:
        environment: versions, machine, command, the options (``bench``), and the extractor behind Fréchet distance
            and accuracy.
        contract: contract of all rows.
        rows: the contenders.
        memory: bytes of the model's weights, and of the weights and slots of the first schedule.
        aa_ratio: ratio of two timings of the full run.
        components_ms: time of text encoders and VAE for one batch, by name.
        left_out: rows and parts that could not be measured, with reasons.
    """

    environment: Mapping[str, Any]
    contract: Contract
    rows: tuple[Row, ...]
    memory: Mapping[str, int]
    aa_ratio: float
    components_ms: Mapping[str, float] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    __pydantic_config__ = _STRICT


def to_json(report: BenchReport) -> dict[str, Any]:
    """The report as one JSON document. Undefined values are null, and every number is finite."""
    document = {"schema_version": SCHEMA_VERSION, "format": "bench", **asdict(report)}
    plain: dict[str, Any] = json.loads(json.dumps(document, allow_nan=False))
    return plain


def write_report(report: BenchReport, path: Path) -> None:
    """Write the document of `to_json` atomically.

    Args:
        report: the report.
        path: the file, overwritten if present.

    Raises:
        InputError: ``path`` cannot be written.
    """
    write_atomic(path, json.dumps(to_json(report), indent=1, allow_nan=False) + "\n")


def load_report(path: Path) -> BenchReport:
    """Read a document of `write_report`. Raises InputError for a damaged file, another format or a newer version."""
    report = load_document(path, "bench", BenchReport, "schema_version", SCHEMA_VERSION)
    if [row.kind for row in report.rows[:1]] != ["full"]:
        raise InputError(f"the first row of a bench must be the full run, {path} has another: run bench again")
    for row in report.rows:
        for name, keys in _PERCENTILES.items():
            values = getattr(row, name)
            if values is not None and set(values) != set(keys):
                raise InputError(f"{name} of {row.name} must hold {', '.join(keys)} in {path}: run bench again")
        if row.latency_ms["p50"] <= 0:
            raise InputError(
                f"the latency of {row.name} must be above 0 ms in {path}, got {row.latency_ms['p50']}: run bench again"
            )
    return report
