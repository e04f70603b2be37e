"""Bytes of engines that nobody has built yet: weights, and code by what generates it.

The coefficients ship with the package, one fit for each target, version and precision (engine_sizes.json), made from
built engines by benchmarks/engine_bytes.py; errors of bundles whose family a fit left out stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from dipgo_deploy.core.disk import read_json
from dipgo_deploy.core.document import checked
from dipgo_deploy.core.engine import TargetName

__all__ = ["SIZES_FILE", "SizeFit", "code_bytes", "size_fit", "with_profile"]

SIZES_FILE = Path(__file__).with_name("engine_sizes.json")
"""Where the fits stand."""


@dataclass(frozen=True)
class SizeFit:
    """What one of each count adds to an engine, in ``bytes``, for a target, version and precision.

    ``workspace_bytes`` is the device memory that a context takes besides the values of its graph. ``source`` says what
    all was fitted to. ``errors`` holds relative errors by bundle: of the foretold sum of its engines, ``held_out`` by
    a fit that left out the bundle's family and ``fitted`` by this one, and of its ``activations``.
    """

    target: TargetName
    version: str
    precision: str
    source: str
    bytes: dict[str, float]
    workspace_bytes: int
    errors: dict[str, dict[str, float]]


@cache
def _fits() -> tuple[SizeFit, ...]:
    return tuple(checked(fit, SizeFit, SIZES_FILE.name) for fit in read_json(SIZES_FILE)["fits"])  # type: ignore[union-attr]


def size_fit(target: str, precision: str, version: str = "") -> SizeFit | None:
    """The fit of a target, of the version where there is one, else of the latest; None where nothing was measured.

    Both half precisions share one.
    """
    kind = "float32" if precision == "float32" else "float16"
    fits = [fit for fit in _fits() if (fit.target, fit.precision) == (target, kind)]
    own = [fit for fit in fits if fit.version == version] or sorted(fits, key=_age)
    return own[-1] if own else None


def _age(fit: SizeFit) -> list[int]:
    return [int(part) for part in fit.version.split(".")]


def code_bytes(counts: Mapping[str, int], fit: SizeFit) -> int:
    """What an engine holds besides weights. ``counts`` are those of `with_profile`."""
    return round(sum(fit.bytes[kind] * count for kind, count in counts.items()))


def with_profile(counts: Mapping[str, int], has_profile: bool) -> dict[str, int]:
    """What a fit has bytes for, of a graph's counts (graphs/kernels.py): a range of shapes adds kernels and code."""
    found = dict(counts)
    ranged = found.pop("ranged_kernel")
    found["kernel"] += ranged if has_profile else 0
    kernels = sum(count for kind, count in found.items() if kind != "node")
    return {**found, "profiled_node": found["node"] * has_profile, "profiled_kernel": kernels * has_profile}
