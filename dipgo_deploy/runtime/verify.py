"""Verify: the fast path judged by the slow one, rung by rung, on real trajectories; and the schedule by the full run.

Compile error and schedule error are two numbers, never one. Every rung compares with ``max |a - b|`` over the largest
reference value of the slot: *local*, where each graph is fed the reference's slots, and *free-running*, over the whole
trajectory. The first slot and step that part are named.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field

from dipgo_deploy.runtime.half_export import in_float32, own_variant
from dipgo_deploy.runtime.ladder import Ladder, Rung
from dipgo_deploy.runtime.loaded import LoadedBundle
from dipgo_deploy.runtime.verify_options import VerifyOptions

__all__ = ["VerifyReport", "verify"]


@dataclass(frozen=True)
class VerifyReport:
    """All rungs, and PSNR of the schedule's images to the full run's in dB (worst, p10, p50) on [0, 1] images."""

    rungs: tuple[Rung, ...]
    psnr_db: Mapping[str, float] = field(default_factory=dict)
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether every rung and gate held."""
        return not self.failure


def verify(bundle: LoadedBundle, options: VerifyOptions | None = None) -> VerifyReport:
    """Run the ladder on ``bundle``.

    1. All gates open: the full schedule under the surgery is the plain model, bitwise.
    2. The program on torch is the PyTorch reference; in float64 where float32 roundings alone exceed the tolerance.
    3. ONNX Runtime on the subnets is torch.
    4. ONNX Runtime on the segments is the subnets (for a bundle of that layout).
    5. The bundle's engines are ONNX Runtime on its own graphs (for a target that runs engines); tolerances are those of
       the precision they were built in.

    Where float32 itself is farther off than the tolerance (PyTorch in float64, fed the same slots, says how far), as
    behind a normalisation of nearly equal values, rungs in float32 allow ROUNDINGS times that at that place, and say so
    in their names; a tolerance that is asked for holds everywhere. A bundle in bfloat16, which NumPy lacks, and one
    that was exported in half precision and has graphs with islands because its own do not hold, are judged in float32:
    their model is traced in it, once.
    """
    options = options or VerifyOptions()
    as_it_is = bundle.manifest.contract.dtype != "bfloat16" and own_variant(bundle) is None
    with nullcontext(bundle) if as_it_is else in_float32(bundle) as judged:
        ladder = Ladder(judged, options, bundle)
        rungs = tuple(ladder.climb())
        psnr = ladder.schedule_psnr()
    failure = next((_failure(rung) for rung in rungs if not rung.passed), "")
    floor = options.min_psnr_db
    if not failure and floor is not None and psnr["p50"] < floor:
        failure = (
            f"median PSNR to the full run is {psnr['p50']:.1f} dB, {floor:g} dB is wanted: search a milder schedule"
        )
    return VerifyReport(rungs, psnr, failure)


def _failure(rung: Rung) -> str:
    where = f", first at {rung.first.value}, step {rung.first.step} ({rung.first.relative:.1e})" if rung.first else ""
    local = f"local {rung.local.relative:.1e}, " if rung.local else ""
    return f"{rung.name}: {local}free-running {rung.free:.1e} past tolerance{where}: the fast path is not the slow one"
