"""Before engines are built: the asked precision stands in the bundle, with the islands that its trajectories need."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

from dipgo_deploy.core.errors import GateError, InputError, UsageError
from dipgo_deploy.core.precision import HalfType, PrecisionRecord, half_of
from dipgo_deploy.graphs.cut import load_master
from dipgo_deploy.graphs.precision import has_half_angles
from dipgo_deploy.graphs.trace import MASTER_FILE
from dipgo_deploy.graphs.variant import load_record, load_variant, write_record, write_variant
from dipgo_deploy.runtime.engine_options import EngineOptions
from dipgo_deploy.runtime.generate import noise_for
from dipgo_deploy.runtime.half_export import in_float32, own_variant, shortage
from dipgo_deploy.runtime.islands import find_islands
from dipgo_deploy.runtime.loaded import LoadedBundle

__all__ = ["Preparation", "planned", "prepared"]

Action = Literal["nothing", "stands", "search", "look"]
"""``look``: the schedule runs once, where memory for a search in float32 is short."""


@dataclass(frozen=True)
class Preparation:
    """What has to be done before engines can be built: the record where it stands, and what is to be said about it."""

    action: Action
    record: PrecisionRecord | None = None
    note: str = ""


def planned(bundle: LoadedBundle, options: EngineOptions) -> Preparation:
    """What `prepared` would do for ``options``.

    Raises UsageError for a tolerance where nothing is searched, or a half precision of a bundle in another one.
    """
    own = bundle.manifest.contract.dtype
    wanted = options.precision or own
    half = half_of(wanted)
    if options.islands.tolerance is not None and half is None:
        raise UsageError(
            "--tolerance is for the search for islands, and a bundle in float32 built in float32 has none: leave it "
            "out, or build with --fp16 or --bf16"
        )
    if own not in ("float32", wanted):
        raise UsageError(f"the bundle is in {own}, {wanted} is wanted: export it in float32, or build as it is")
    if half is None or (half == own and not options.checked):
        return Preparation("nothing")
    found = _standing(bundle, half)
    if found is not None and found.source == _source_digest(bundle, half, options):
        return Preparation("stands", found)
    if half != own or not (short := shortage(bundle)):
        return Preparation("search")
    if found is not None:
        return Preparation("stands", found, f"islands as found with other options: for these, {short}")
    return Preparation("look", None, f"{own} as exported, without a search for islands: {short}")


def _standing(bundle: LoadedBundle, half: HalfType) -> PrecisionRecord | None:
    """The record of a half precision whose graphs stand whole, whatever they were searched with; else None."""
    try:
        if half != bundle.manifest.contract.dtype:
            return load_variant(bundle.folder, bundle.denoiser, half).record
        own_variant(bundle)  # refuses a damaged one
        return load_record(bundle.folder, half)
    except InputError:
        return None


def prepared(
    bundle: LoadedBundle, options: EngineOptions, preparation: Preparation
) -> Iterator[tuple[str, PrecisionRecord | None]]:
    """Make the asked precision stand in the bundle; yields what is done, and the record where there is one.

    ``preparation`` is what was `planned`. Raises GateError where half precision cannot be made to hold, or something is
    not finite, InputError for a damaged bundle.
    """
    bundle.compiled  # noqa: B018 - checks the graphs as untrusted input
    half = half_of(options.precision or bundle.manifest.contract.dtype)
    if preparation.action == "stands":
        yield "the half-precision graphs stand", preparation.record
    elif preparation.action == "look":
        yield "running the schedule once", None
        _check_finite(bundle)
    elif preparation.action == "search" and half is not None:
        if half != bundle.manifest.contract.dtype:
            yield from _searched(bundle, bundle, half, options)
            return
        yield "tracing the model in float32", None
        with in_float32(bundle) as wide:
            yield from _searched(bundle, wide, half, options)


def _searched(
    bundle: LoadedBundle, wide: LoadedBundle, half: HalfType, options: EngineOptions
) -> Iterator[tuple[str, PrecisionRecord | None]]:
    """Search for islands in ``wide``, the bundle in float32, and write into ``bundle`` what engines need."""
    record = None
    for line, found in find_islands(wide, half, _source_digest(bundle, half, options), options.islands):
        record = found
        yield line, None
    assert record is not None
    if wide is not bundle and not record.keeps_float32 and not _has_half_angles(bundle):
        write_record(bundle.folder, bundle.denoiser, record)
        yield f"{half} holds as exported", record
        return
    islands = {*record.fixed, *(node for island in record.islands for node in island.nodes)}
    yield "writing half-precision graphs and weights", None
    write_variant(
        bundle.folder, bundle.denoiser, wide.blocks, wide.schedule, wide.program, record, islands, wide.denoiser
    )
    yield "half-precision graphs written", record


def _has_half_angles(bundle: LoadedBundle) -> bool:
    """Whether the bundle's own graphs, unlike those that were searched, take sines of half-precision angles."""
    return has_half_angles(load_master(bundle.denoiser / MASTER_FILE).graph)


def _source_digest(bundle: LoadedBundle, half: HalfType, options: EngineOptions) -> str:
    """sha256 over all that an island search depends on."""
    digests = bundle.manifest.digests
    weights = bundle.weights.relative_to(bundle.folder).as_posix()
    names = (f"{bundle.manifest.denoiser}/{MASTER_FILE}", weights, "schedule.json", "program.json")
    text = json.dumps([half, asdict(options.islands), *(digests[name] for name in names)])
    return hashlib.sha256(text.encode()).hexdigest()


def _check_finite(bundle: LoadedBundle) -> None:
    contract = bundle.manifest.contract
    session = bundle.session(contract.batch.min, guidance_scale=contract.guidance_scale(None))
    noise = noise_for(range(contract.batch.min), contract.latent_shape)
    given = bundle.model.conditioning([0] * contract.batch.min, contract.guidance)
    if not np.isfinite(session.run(noise, given)).all():
        raise GateError(
            f"the bundle, exported in {contract.dtype}, gives numbers that are not finite: build on a machine that has "
            "the memory to find the nodes that must stay in float32"
        )
