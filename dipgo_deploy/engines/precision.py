"""Before engines are built: the graphs in the requested precision are made, unless they are up to date.

A float32 bundle gets half-precision graphs with the fp32 fallback nodes that its trajectories need. A bundle that was
exported in half precision is built as it is, once its schedule has run with finite numbers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from dipgo_deploy.bundle.bundle import Bundle
from dipgo_deploy.bundle.half_precision import check_convertible, load_half_precision, write_half_precision
from dipgo_deploy.core.errors import GateError, InputError, UsageError
from dipgo_deploy.core.precision import HalfType, PrecisionRecord, half_of
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.engines.fallback import find_fallback_nodes
from dipgo_deploy.engines.options import FallbackOptions
from dipgo_deploy.graphs.cut import MASTER_FILE
from dipgo_deploy.runtime.generate import run_inputs
from dipgo_deploy.runtime.open import open_session

__all__ = ["PrecisionStatus", "check_finite", "ensure_precision", "precision_status"]


@dataclass(frozen=True)
class PrecisionStatus:
    """What is left to do before engines can be built in a precision.

    Attributes:
        action: ``none`` where the bundle's own graphs are built, ``search`` where fp32 fallback nodes have to be
            searched, ``up to date`` where that was done.
        record: of graphs that are up to date.
    """

    action: Literal["none", "search", "up to date"]
    record: PrecisionRecord | None = None


def precision_status(bundle: Bundle, precision: HalfType | None, options: FallbackOptions) -> PrecisionStatus:
    """What ``ensure_precision`` would do.

    Args:
        bundle: the bundle.
        precision: a half precision, or None for the bundle's own dtype.
        options: how fallback nodes are searched.

    Returns:
        The status of the graphs in that precision.

    Raises:
        UsageError: a tolerance where nothing is searched, or a precision that the bundle cannot be converted to.
    """
    check_convertible(bundle, precision)
    own = bundle.contract.dtype
    half = half_of(precision or own)
    if half is None or half == own:
        if options.tolerance is not None:
            raise UsageError(
                f"tolerance is for the search for fp32 fallback nodes, and a bundle in {own} built in {own} needs "
                "none: leave it out, or build a float32 bundle in half precision"
            )
        return PrecisionStatus("none")
    try:
        record = load_half_precision(bundle.folder, bundle.denoiser, half).record
    except InputError:  # There are none yet, they are damaged, or an older version wrote them.
        return PrecisionStatus("search")
    if record is None or record.source != _source_digest(bundle, half, options):
        return PrecisionStatus("search")
    return PrecisionStatus("up to date", record)


def ensure_precision(
    bundle: Bundle, precision: HalfType | None, options: FallbackOptions
) -> Work[PrecisionRecord | None]:
    """Make the graphs of a precision, unless they are up to date.

    Args:
        bundle: the bundle. Half-precision graphs are written into its folder.
        precision: a half precision, or None for the bundle's own dtype.
        options: how fallback nodes are searched.

    Returns:
        The result of the search for fallback nodes, None for the bundle's own dtype.

    Raises:
        GateError: half precision does not hold the tolerance, or a number is not finite.
        InputError: the bundle is damaged.
        UsageError: see ``precision_status``.
    """
    status = precision_status(bundle, precision, options)
    bundle.compiled  # noqa: B018 - checks the graphs as untrusted input
    if status.action == "up to date":
        yield Progress("half precision", 1, 1, "the half-precision graphs are up to date")
    elif status.action == "search" and precision is not None:
        source = _source_digest(bundle, precision, options)
        record = yield from find_fallback_nodes(bundle, precision, source, options)
        nodes = {*record.always_fp32, *(node for group in record.fallback for node in group.nodes)}
        yield Progress("half precision", 0, 1, "writing half-precision graphs and weights")
        write_half_precision(bundle, record, nodes)
        return record
    return status.record


def _source_digest(bundle: Bundle, half: HalfType, options: FallbackOptions) -> str:
    """sha256 over everything that a search for fallback nodes depends on."""
    digests = bundle.manifest.digests
    weights = bundle.weights.relative_to(bundle.folder).as_posix()
    names = (f"{bundle.manifest.denoiser}/{MASTER_FILE}", weights, "schedule.json", "program.json")
    text = json.dumps([half, asdict(options), *(digests[name] for name in names)])
    return hashlib.sha256(text.encode()).hexdigest()


def check_finite(bundle: Bundle) -> None:
    """Raise GateError unless one run of the smallest batch gives finite numbers."""
    contract = bundle.contract
    # ONNX Runtime computes half-precision graphs in float32 on the CPU, which hides an overflow. PyTorch does not.
    run, scale = RunOptions("torch"), contract.guidance_scale(None)
    session = open_session(bundle, contract.batch.min, run, guidance_scale=scale)
    image = session.run(*run_inputs(bundle.model, contract, range(contract.batch.min)), check_finite=False)
    if not np.isfinite(image).all():
        raise GateError(
            f"the bundle, exported in {contract.dtype}, gives numbers that are not finite: export it in float32, so "
            "that the nodes that must stay in float32 can be searched"
        )
