"""The half-precision variant of a bundle: its graphs are those of the bundle, and it is never half there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dipgo_deploy.bundle import Bundle, ExportOptions, export, load_bundle
from dipgo_deploy.bundle.half_precision import Variant, load_variant, write_variant
from dipgo_deploy.bundle.manifest import drop_records
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.precision import PrecisionRecord
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import make_contract
from dipgo_deploy.search.random_schedules import random_schedule
from tests.models.families import tiny
from tests.runtime.bundles import few_graphs

RECORD = PrecisionRecord("float16", "digest", 1.0, 1, (), (), (), 0.0, 0.0)


def written(bundle: Bundle, origin: dict[str, str]) -> Variant:
    schedule = replace(bundle.schedule, origin=origin)
    return write_variant(bundle.folder, bundle.denoiser, bundle.blocks, schedule, bundle.program, RECORD, ())


@pytest.mark.parametrize("most", [None, 3])
@pytest.mark.parametrize("origin", [{}, {"max_graphs": "3"}])
def test_graphs_are_those_of_the_bundle_whatever_the_schedules_origin_says(tmp_path: Path, most, origin) -> None:
    model = tiny("dit")
    contract = make_contract(model, steps=6)
    schedule = random_schedule(trace(model).blocks, contract, "output", np.random.default_rng(0), 0.6)
    bundle = load_bundle(export(model, schedule, tmp_path / "bundle", ExportOptions(max_graphs=most)))
    variant = written(bundle, origin)
    assert len(bundle.program.graphs) == 3 or most is None
    plain = [[replace(graph, weight_bytes=0) for graph in p.graphs] for p in (variant.program, bundle.program)]
    assert plain[0] == plain[1]
    assert load_variant(bundle.folder, bundle.denoiser, "float16").program == variant.program


@pytest.mark.parametrize("act", ["save_half_weights", "cut_program", "save_precision"])
def test_a_process_that_dies_replacing_a_variant_leaves_a_bundle_that_loads(
    act: str, tmp_path: Path, monkeypatch
) -> None:
    bundle = few_graphs(tiny("dit"), tmp_path / "bundle", shares=(1, 0))
    written(bundle, {})

    def died(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"dipgo_deploy.bundle.half_precision.{act}", died)
    with pytest.raises(KeyboardInterrupt):
        written(bundle, {})
    assert load_bundle(bundle.folder, whole=True)
    with pytest.raises(InputError, match="has no float16 variant"):
        load_variant(bundle.folder, bundle.denoiser, "float16")


@pytest.mark.parametrize(
    "name",
    [
        "precision.fp16.json",
        "program.fp16.json",
        "transformer/subnet_00.fp16.onnx",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
    ],
)
def test_a_variant_that_the_manifest_does_not_record_is_refused(tmp_path: Path, name: str) -> None:
    bundle = few_graphs(tiny("dit"), tmp_path / "bundle", shares=(1, 0))
    written(bundle, {})
    drop_records(bundle.folder, [bundle.folder / name])
    with pytest.raises(InputError, match=f"has no digest of {Path(name).name}: run dipgo-deploy build-engine again"):
        load_variant(bundle.folder, bundle.denoiser, "float16")
