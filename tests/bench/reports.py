"""Reports made up for tests, without a bench."""

from __future__ import annotations

from dipgo_deploy.bench.report import BenchReport, Row
from dipgo_deploy.core.blocks import Macs
from tests.search.graphs import contract_of, unet_like


def psnr(median: float) -> dict[str, float]:
    return {"p10": median - 2, "p50": median, "p50_low": median - 0.5, "p50_high": median + 0.4}


def row(name: str, kind: str, ms: float, full_db: float = 35.0, converged_db: float | None = 33.0, **more) -> Row:
    """A contender of ten calls, a thousandth of a GMAC each."""
    return Row(
        **{
            "name": name,
            "kind": kind,
            "nfe": 10,
            "macs": Macs(10**7, 10**7),
            "latency_ms": {"p50": ms, "p90": 1.1 * ms},
            "speedup": 500 / ms,
            "speedup_end_to_end": None,
            "efficiency": 1.0,
            "psnr_full_db": psnr(full_db),
            "psnr_converged_db": None if converged_db is None else psnr(converged_db),
            "ssim": {"p10": 0.9, "p50": 0.95},
            "ssim_converged": None if converged_db is None else {"p10": 0.9, "p50": 0.95},
            "frechet": None,
            "accuracy": None,
            "weight_bytes": 2**20,
            "slot_bytes": 2**10,
            **more,
        }
    )


def report_of(*rows: Row, **more) -> BenchReport:
    """The full run and ``rows``; ``more`` are fields of BenchReport."""
    found = (row("full", "full", 500, 120.0, rows[0].psnr_converged_db and 45.0), *rows)
    return BenchReport(
        **{
            "environment": {"bench": {"batch": 8, "images": 32, "device": "cpu"}, "processor": "Abacus"},
            "contract": contract_of(unet_like(), 20),
            "rows": found,
            "memory": {"model_weight_bytes": 2**20, "bundle_weight_bytes": 2**20, "slot_bytes": 2**10},
            "aa_ratio": 1.0,
            **more,
        }
    )


CROWD = report_of(
    row("uniform", "schedule", 100, 35.0),
    row("deepcache", "schedule", 210, 37.0, 36.0),
    *(row(f"DDIM-{n} trailing", "sampler", 10.1 * n, 30 + n / 2, 31 + n / 2) for n in (10, 11, 12, 21)),
    *(row(f"UniPC-{n} linspace, sigma_min", "sampler", 10 * n, 33 + n / 2, 40 + n / 5) for n in (10, 11, 12, 21)),
    *(row(f"DPM++ 2M-{n} karras", "sampler", 9.9 * n, 33 + n / 2, 40 + n / 5) for n in (10, 11, 12, 21)),
)
"""Marks on top of one another, as plain samplers at equal latency are."""
