"""The half-precision graphs of a bundle: they match the bundle's graphs, and are complete or absent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dipgo_deploy.bundle import Bundle, ExportOptions, export, load_bundle
from dipgo_deploy.bundle.half_precision import GraphSource, graph_source, load_half_precision, write_half_precision
from dipgo_deploy.bundle.manifest import drop_records
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.precision import PrecisionRecord
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import make_contract
from dipgo_deploy.search.random_schedules import random_schedule
from tests.models.families import tiny
from tests.runtime.bundles import few_graphs

RECORD = PrecisionRecord("float16", "digest", 1.0, 1, (), (), (), 0.0, 0.0)


def convert(bundle: Bundle, origin: dict[str, str] | None = None) -> GraphSource:
    schedule = replace(bundle.schedule, origin=origin or {})
    return write_half_precision(replace(bundle, schedule=schedule), RECORD, ())


def load(bundle: Bundle) -> GraphSource:
    return load_half_precision(bundle.folder, bundle.denoiser, "float16")


@pytest.mark.parametrize("most", [None, 3])
@pytest.mark.parametrize("origin", [{}, {"max_graphs": "3"}])
def test_graphs_match_the_bundles_graphs_whatever_the_schedules_origin_says(tmp_path: Path, most, origin) -> None:
    model = tiny("dit")
    contract = make_contract(model, steps=6)
    schedule = random_schedule(trace(model).blocks, contract, "output", np.random.default_rng(0), 0.6)
    bundle = load_bundle(export(model, schedule, tmp_path / "bundle", ExportOptions(max_graphs=most)))
    source = convert(bundle, origin)
    assert len(bundle.program.graphs) == 3 or most is None
    plain = [[replace(graph, weight_bytes=0) for graph in p.graphs] for p in (source.program, bundle.program)]
    assert plain[0] == plain[1]
    assert load(bundle) == source and graph_source(load_bundle(bundle.folder, whole=True), "float16") == source


@pytest.mark.parametrize("act", ["convert_master", "cut_program", "save_precision"])
def test_a_process_that_dies_replacing_half_precision_graphs_leaves_a_bundle_that_loads(
    act: str, tmp_path: Path, monkeypatch
) -> None:
    bundle = few_graphs(tiny("dit"), tmp_path / "bundle", shares=(1, 0))
    convert(bundle)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"dipgo_deploy.bundle.half_precision.{act}", die)
    with pytest.raises(KeyboardInterrupt):
        convert(bundle)
    assert load_bundle(bundle.folder, whole=True)
    with pytest.raises(InputError, match="has no float16 graphs: build engines of it in that precision first"):
        load(bundle)


@pytest.mark.parametrize(
    "name",
    [
        "precision.fp16.json",
        "program.fp16.json",
        "transformer/subnet_00.fp16.onnx",
        "transformer/diffusion_pytorch_model.fp16.safetensors",
    ],
)
def test_half_precision_graphs_that_the_manifest_does_not_record_are_refused(tmp_path: Path, name: str) -> None:
    bundle = few_graphs(tiny("dit"), tmp_path / "bundle", shares=(1, 0))
    convert(bundle)
    drop_records(bundle.folder, [bundle.folder / name])
    with pytest.raises(InputError, match=f"has no digest of {Path(name).name}: build the engines again"):
        load(bundle)


def test_a_bundle_in_half_precision_is_its_own_source_and_is_not_converted(tmp_path: Path) -> None:
    bundle = few_graphs(tiny("dit"), tmp_path / "half", shares=(1, 0), dtype="float16")
    own = graph_source(bundle, None)
    assert graph_source(bundle, "float16") == own and own.record is None
    assert own.program == bundle.program and [path.name for path in own.graphs.values()] == ["subnet_00.onnx"]
    with pytest.raises(UsageError, match="the bundle is in float16, bfloat16 is requested: export it in float32"):
        graph_source(bundle, "bfloat16")
