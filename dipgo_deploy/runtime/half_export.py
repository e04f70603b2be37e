"""Bundles that were exported in half precision: what a search for islands needs of them, and what it left there.

The search judges by float32. So the PyTorch model is loaded from the bundle's own weights, each a half-precision number
written in float32, traced, and the bundle's schedule lowered over it, in a folder that is gone afterwards.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.latency import MIB
from dipgo_deploy.core.precision import is_half, variant_name
from dipgo_deploy.core.schedule import MAIN_EXPERT
from dipgo_deploy.graphs.cut import cut_program
from dipgo_deploy.graphs.trace import trace
from dipgo_deploy.graphs.variant import PRECISION_FILE, Variant, load_record, load_variant
from dipgo_deploy.graphs.weights import WEIGHTS_FILE
from dipgo_deploy.lowering import LowerOptions, lower, shares_graphs
from dipgo_deploy.models.sampler_reading import read_sampler
from dipgo_deploy.runtime.loaded import LoadedBundle
from dipgo_deploy.supernet.free_memory import free_host_bytes

__all__ = ["in_float32", "own_variant", "shortage"]

_FLOAT32 = "denoiser"
_WEIGHTS_AT_ONCE = 2.2 + 0.5
"""Peak of trace and search, in float32 weights, and the bundle's own model beside them."""


def shortage(bundle: LoadedBundle) -> str:
    """Why this machine cannot hold the bundle in float32; "" if it can."""
    needed, free = int(_WEIGHTS_AT_ONCE * 2 * bundle.manifest.model_weight_bytes), free_host_bytes()
    return "" if needed <= free else f"that takes {needed / MIB:.0f} MiB of memory, {free / MIB:.0f} are free"


@contextmanager
def in_float32(bundle: LoadedBundle) -> Iterator[LoadedBundle]:
    """The same schedule over the same weights in float32, with as many graphs of the same names.

    Raises InputError where the model cannot be loaded or traced.
    """
    model = bundle.model.as_dtype("float32")
    contract = replace(bundle.manifest.contract, dtype="float32", model_digest=model.digest)
    schedule = replace(bundle.schedule, contract=contract)
    shares = shares_graphs(bundle.program, bundle.schedule, bundle.blocks)
    with tempfile.TemporaryDirectory(prefix="dipgo_float32_") as folder:
        traced = trace(model, granularity=schedule.granularity, out=Path(folder) / _FLOAT32)
        options = LowerOptions(bundle.program.layout, share_graphs=shares)
        program = lower(schedule, traced.blocks, read_sampler(contract.sampler), options)
        graphs = cut_program(traced.master, program, traced.blocks)
        for name, content in graphs.items():
            write_atomic(traced.folder / f"{name}.onnx", content)
        manifest = replace(
            bundle.manifest,
            contract=contract,
            denoiser=_FLOAT32,
            graphs={name: f"{_FLOAT32}/{name}.onnx" for name in graphs},
            weights={MAIN_EXPERT: f"{_FLOAT32}/{WEIGHTS_FILE}"},
        )
        yield LoadedBundle(Path(folder), manifest, schedule, program, traced.blocks, model)


def own_variant(bundle: LoadedBundle) -> Variant | None:
    """The graphs with islands of a bundle that was exported in half precision; None where it is right as it is.

    Raises InputError where they are damaged.
    """
    own = bundle.manifest.contract.dtype
    if not is_half(own) or not (bundle.folder / variant_name(PRECISION_FILE, own)).is_file():  # type: ignore[arg-type]
        return None
    found = load_record(bundle.folder, own).keeps_float32  # type: ignore[arg-type]
    return load_variant(bundle.folder, bundle.denoiser, own) if found else None  # type: ignore[arg-type]
