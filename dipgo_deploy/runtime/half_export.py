"""Bundles that were exported in half precision: what a search for islands needs of them, and what it left there.

The search judges by float32. So the PyTorch model is loaded from the bundle's own weights, each a half-precision number
written in float32, traced, and the bundle's schedule lowered over it, in a folder that is gone afterwards. The trace is
kept in the cache like any other.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.errors import InputError, first_line
from dipgo_deploy.core.latency import MIB
from dipgo_deploy.core.precision import half_of, variant_name
from dipgo_deploy.core.schedule import MAIN_EXPERT
from dipgo_deploy.graphs.cut import cut_program
from dipgo_deploy.graphs.trace import cache_folder, trace
from dipgo_deploy.graphs.variant import PRECISION_FILE, Variant, load_record, load_variant
from dipgo_deploy.graphs.weights import WEIGHTS_FILE
from dipgo_deploy.lowering import LowerOptions, lower, shares_graphs
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.runtime.loaded import LoadedBundle
from dipgo_deploy.supernet.memory import TRACE_MEMORY, free_host_bytes

__all__ = ["in_float32", "own_variant", "shortage"]

_FLOAT32 = "denoiser"


def shortage(bundle: LoadedBundle) -> str:
    """Why this machine cannot hold the bundle in float32; "" if it can."""
    size = bundle.manifest.model_weight_bytes
    needed, free = int(size + TRACE_MEMORY * 2 * size), free_host_bytes()
    return "" if needed <= free else f"that takes {needed / MIB:.0f} MiB of memory, {free / MIB:.0f} are free"


@contextmanager
def in_float32(bundle: LoadedBundle) -> Iterator[LoadedBundle]:
    """The same schedule over the same weights in float32, with graphs of the same names.

    The bundle stands beside the cache's traces for as long as the context lasts; the trace stays. Raises InputError
    where the model cannot be loaded or traced, or is divided otherwise in float32, or the disk is full.
    """
    model = bundle.model.as_dtype("float32")
    contract = replace(bundle.manifest.contract, dtype="float32", model_digest=model.digest)
    schedule = replace(bundle.schedule, contract=contract)
    shares = shares_graphs(bundle.program, bundle.schedule, bundle.blocks)
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="float32_") as folder:
        traced = trace(model, granularity=schedule.granularity)
        denoiser = Path(folder) / _FLOAT32
        options = LowerOptions(bundle.program.layout, share_graphs=shares)
        program = lower(schedule, traced.blocks, read_sampler(contract.sampler), options)
        graphs = cut_program(traced.master, program, traced.blocks)
        if graphs.keys() != bundle.program.graph_of_name.keys():
            raise InputError(
                f"{bundle.folder} has other graphs than its model in float32: export it in float32, and build that"
            )
        _copy(traced.folder, denoiser)
        for name, content in graphs.items():
            write_atomic(denoiser / f"{name}.onnx", content)
        manifest = replace(
            bundle.manifest,
            contract=contract,
            denoiser=_FLOAT32,
            graphs={name: f"{_FLOAT32}/{name}.onnx" for name in graphs},
            weights={MAIN_EXPERT: f"{_FLOAT32}/{WEIGHTS_FILE}"},
        )
        yield LoadedBundle(Path(folder), manifest, schedule, program, traced.blocks, model)


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copytree(source, target)
    except OSError as error:
        raise InputError(f"{target} cannot be written ({first_line(error)}): free space") from None


def own_variant(bundle: LoadedBundle) -> Variant | None:
    """The graphs with islands of a bundle that was exported in half precision; None where it is right as it is.

    Raises InputError where they are damaged.
    """
    own = half_of(bundle.manifest.contract.dtype)
    if own is None or not (bundle.folder / variant_name(PRECISION_FILE, own)).is_file():
        return None
    is_alone = not (bundle.folder / variant_name("program.json", own)).is_file()
    if is_alone and load_record(bundle.folder, own):
        return None
    return load_variant(bundle.folder, bundle.denoiser, own)
