"""Before engines are built: the asked precision stands in the bundle, with the islands that its trajectories need."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import get_args

import numpy as np

from dipgo_deploy.core.errors import GateError, InputError, UsageError
from dipgo_deploy.core.precision import HalfType, PrecisionRecord, is_half
from dipgo_deploy.graphs.trace import MASTER_FILE
from dipgo_deploy.graphs.variant import load_record, load_variant, write_record, write_variant
from dipgo_deploy.runtime.engine_options import EngineOptions
from dipgo_deploy.runtime.generate import noise_for
from dipgo_deploy.runtime.half_export import in_float32, shortage
from dipgo_deploy.runtime.islands import find_islands
from dipgo_deploy.runtime.loaded import LoadedBundle

__all__ = ["islands_note", "prepared", "standing_variant"]


def islands_note(bundle: LoadedBundle, options: EngineOptions) -> str:
    """What to say where half precision has no search for islands, because the bundle's weights are half already.

    Raises UsageError for a tolerance where nothing is searched.
    """
    own = bundle.manifest.contract.dtype
    if options.islands.tolerance is not None and (options.precision or own) == "float32":
        raise UsageError(
            "--tolerance is for the search for islands, and a bundle in float32 built in float32 has none: leave it "
            "out, or build with --fp16 or --bf16"
        )
    short = shortage(bundle) if is_half(own) and standing_variant(bundle, options) is None else ""
    return f"{own} as exported, without a search for islands: {short}" if short else ""


def prepared(bundle: LoadedBundle, options: EngineOptions) -> Iterator[tuple[str, PrecisionRecord | None]]:
    """Make the asked precision stand in the bundle; yields what is done, and the record where there is one."""
    own = bundle.manifest.contract.dtype
    wanted = options.precision or own
    bundle.compiled  # noqa: B018 - checks the graphs as untrusted input
    if wanted == "float32" or own not in ("float32", wanted):  # the second is refused by engine_source
        return
    if is_half(own) and not options.checked:
        return
    standing = standing_variant(bundle, options)
    if standing is not None:
        yield "the half-precision graphs stand", standing
    elif own == "float32":
        yield from _searched(bundle, bundle, options)
    elif shortage(bundle):
        yield "running the schedule once", None
        _check_finite(bundle)
    else:
        yield "tracing the model in float32", None
        with in_float32(bundle) as wide:
            yield from _searched(bundle, wide, options)


def _searched(
    bundle: LoadedBundle, wide: LoadedBundle, options: EngineOptions
) -> Iterator[tuple[str, PrecisionRecord | None]]:
    """Search for islands in ``wide``, the bundle in float32, and write into ``bundle`` what engines need."""
    own = bundle.manifest.contract.dtype
    record = None
    for line, found in find_islands(wide, _half(options, own), _source_digest(bundle, options), options.islands):
        record = found
        yield line, None
    assert record is not None
    if wide is not bundle and not record.keeps_float32:
        write_record(bundle.folder, record)
        yield f"{own} holds as exported", record
        return
    islands = {*record.fixed, *(node for island in record.islands for node in island.nodes)}
    yield "writing half-precision graphs and weights", None
    write_variant(
        bundle.folder, bundle.denoiser, wide.blocks, wide.schedule, wide.program, record, islands, wide.denoiser
    )
    yield "half-precision graphs written", record


def standing_variant(bundle: LoadedBundle, options: EngineOptions) -> PrecisionRecord | None:
    """The record of the half-precision variant that stands whole and is that of ``options``; else None."""
    own = bundle.manifest.contract.dtype
    wanted = _half(options, own)
    try:
        record = load_record(bundle.folder, wanted)
        if wanted != own or record.keeps_float32:
            load_variant(bundle.folder, bundle.denoiser, wanted)
    except InputError:
        return None
    return record if record.source == _source_digest(bundle, options) else None


def _half(options: EngineOptions, own: str) -> HalfType:
    """The half precision that is wanted, where one is."""
    return options.precision or next(half for half in get_args(HalfType) if half == own)


def _source_digest(bundle: LoadedBundle, options: EngineOptions) -> str:
    """sha256 over all that an island search depends on."""
    digests = bundle.manifest.digests
    weights = bundle.weights.relative_to(bundle.folder).as_posix()
    names = (f"{bundle.manifest.denoiser}/{MASTER_FILE}", weights, "schedule.json", "program.json")
    text = json.dumps(
        [_half(options, bundle.manifest.contract.dtype), asdict(options.islands), *(digests[name] for name in names)]
    )
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
