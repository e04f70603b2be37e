"""Verify a bundle: every backend compared with a slower one, rung by rung, and the schedule with the full run.

Compile error and schedule error are two numbers and are never mixed. A rung divides ``max |a - b|`` by the largest
reference value of the slot. A *local* deviation feeds each graph with the reference's slots. The *free-running*
deviation is that of the image after the whole trajectory. A failure names the first slot and step that deviate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dipgo_deploy.bundle.bundle import Bundle
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.verify.ladder import Ladder
from dipgo_deploy.verify.options import VerifyOptions
from dipgo_deploy.verify.rung import Rung

__all__ = ["VerifyReport", "verify_bundle"]


@dataclass(frozen=True)
class VerifyReport:
    """The result of a verification.

    Attributes:
        rungs: one comparison each, the lowest first.
        psnr_db: PSNR of the schedule's images to the full run's: worst, p10 and p50, on images in [0, 1].
        failure: why the verification failed, empty if it passed.
        min_psnr_db: the gate on the median PSNR. None if no gate is set.
    """

    rungs: tuple[Rung, ...]
    psnr_db: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""
    min_psnr_db: float | None = None

    @property
    def passed(self) -> bool:
        """Whether every rung and the gate on PSNR held."""
        return not self.failure

    @property
    def compiled_equals_schedule(self) -> bool:
        """The verdict on the compiler: whether every rung held."""
        return all(rung.passed for rung in self.rungs)

    @property
    def near_full_run(self) -> bool | None:
        """The verdict on the schedule: whether the median PSNR reaches the gate. None if no gate is set."""
        # A PSNR that is NaN reaches no gate.
        return None if self.min_psnr_db is None else self.psnr_db["p50"] >= self.min_psnr_db

    def document(self) -> dict[str, Any]:
        """The report as plain data: the verdicts, then every field."""
        verdicts = {
            "passed": self.passed,
            "compiled_equals_schedule": self.compiled_equals_schedule,
            "near_full_run": self.near_full_run,
        }
        return {**verdicts, **asdict(self)}


def verify_bundle(bundle: Bundle, options: VerifyOptions = VerifyOptions()) -> VerifyReport:
    """Compare all ways to run a bundle, from the plain model to the fastest backend.

    1. All gates open: the full schedule under the surgery equals the plain model, bitwise.
    2. The program on PyTorch equals the PyTorch reference, in float64 where float32 roundings exceed the tolerance.
    3. ONNX Runtime on the subnets equals PyTorch.
    4. ONNX Runtime on the segments equals the subnets, for a bundle of that layout.
    5. The bundle's engines equal ONNX Runtime on the bundle's own graphs, for a backend that runs engines. The
       tolerances are those of the precision of the engines.

    Some values are further from the exact value than the tolerance, for example after a normalisation of nearly equal
    numbers. There PyTorch computes in float64 on the same slots. A rung then allows ROUNDING_FACTOR times the rounding
    error of its reference, at that place or of the image, and its name says so. For engines in half precision next to
    graphs in float32, PyTorch computes in the engines' dtype. A tolerance that the user gives holds everywhere.

    Args:
        bundle: the bundle.
        options: images, tolerances and backend.

    Returns:
        All rungs, and the PSNR to the full run.

    Raises:
        UsageError: a bfloat16 bundle on the CPU, where ONNX Runtime has no bfloat16.
        InputError: the bundle holds another model than its contract says.
    """
    if bundle.contract.dtype == "bfloat16" and options.device == "cpu":
        raise UsageError(
            "ONNX Runtime has no bfloat16 on the CPU: verify on device cuda, or export in float32 and build engines "
            "with precision bfloat16"
        )
    ladder = Ladder(bundle, options)
    rungs = tuple(ladder.climb())
    psnr = ladder.schedule_psnr()
    failure = next((_failure(rung) for rung in rungs if not rung.passed), "")
    report = VerifyReport(rungs, psnr, failure, options.min_psnr_db)
    if report.passed and report.near_full_run is False:
        return replace(report, failure=_missed_gate(report))
    return report


def _missed_gate(report: VerifyReport) -> str:
    return (
        f"median PSNR to the full run is {report.psnr_db['p50']:.1f} dB, min_psnr_db is {report.min_psnr_db:g}: search "
        "a milder schedule"
    )


def _failure(rung: Rung) -> str:
    broken = []
    if "local" in rung.past and rung.local is not None:
        broken.append(f"local {rung.local.relative:.1e} past tolerance {rung.local.tolerance:.1e}")
    if "free" in rung.past:
        broken.append(f"free-running {rung.free:.1e} past tolerance {rung.free_tolerance:.1e}")
    first = rung.first
    where = f", first at {first.value}, step {first.step} ({first.relative:.1e})" if first else ""
    return f"{rung.name}: {' and '.join(broken)}{where}: the two paths differ"
