"""Bundles that were exported in half precision: searched in float32, judged in float32, run with what was found."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dipgo_deploy.core.errors import GateError, UsageError
from dipgo_deploy.core.precision import PrecisionRecord
from dipgo_deploy.graphs import ExportOptions, export
from dipgo_deploy.runtime import LoadedBundle, VerifyOptions, load_bundle, opened, preparation, verify
from dipgo_deploy.runtime.deviation import relative_difference
from dipgo_deploy.runtime.dropin import DeployedDenoiser
from dipgo_deploy.runtime.engine_options import EngineOptions
from dipgo_deploy.runtime.half_export import in_float32, own_variant
from dipgo_deploy.runtime.inputs import run_inputs
from dipgo_deploy.runtime.interpreter import Session
from dipgo_deploy.runtime.islands import IslandOptions
from dipgo_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
from dipgo_deploy.runtime.preparation import Preparation, planned, prepared
from dipgo_deploy.runtime.tensorrt_backend import TensorRTBackend
from tests.models.families import tiny
from tests.runtime.bundles import PLANTED, half_export, planted, scheduled
from tests.runtime.fake_tensorrt import Library

OPTIONS = EngineOptions("float16", islands=IslandOptions(images=1, steps=1))
LOOSE = replace(OPTIONS, islands=replace(OPTIONS.islands, tolerance=0.5))


def made(bundle: LoadedBundle, options: EngineOptions = OPTIONS) -> tuple[list[str], PrecisionRecord | None]:
    """What preparing did, in lines, and its record."""
    steps = list(prepared(bundle, options, planned(bundle, options)))
    return [line for line, _ in steps], steps[-1][1]


def short_of_memory(monkeypatch) -> None:
    monkeypatch.setattr("dipgo_deploy.runtime.half_export.free_host_bytes", lambda: 1000)


def test_islands_are_found_kept_and_forgotten(tmp_path: Path, monkeypatch) -> None:
    bundle = half_export(planted(2e5), tmp_path / "half")
    assert own_variant(bundle) is None and planned(bundle, OPTIONS) == Preparation("search")
    lines, record = made(bundle)
    assert lines[0] == "tracing the model in float32" and lines[-1] == "half-precision graphs written"
    assert record is not None and [island.block for island in record.islands] == [PLANTED]
    again = load_bundle(bundle.folder, whole=True)
    assert planned(again, OPTIONS) == planned(again, replace(OPTIONS, precision=None)) == Preparation("stands", record)
    variant = own_variant(again)
    assert variant is not None and variant.blocks.dtype == "float16" and variant.master.is_file()

    # Its own graphs give no numbers, those with islands do; and it is judged in float32, where all is right.
    given = run_inputs(bundle.model, bundle.manifest.contract, [0])
    assert not np.isfinite(bundle.session(1, backend="torch", guidance_scale=2.0).run(*given)).all()
    graphs = {name: path.read_bytes() for name, path in variant.graphs.items()}
    session = Session(variant.program, OnnxRuntimeBackend(graphs, bundle.denoiser), 1, 2.0)
    assert np.isfinite(session.run(*given)).all() and record.free <= 2e-2
    report = verify(again, VerifyOptions(images=1))
    assert report.passed and report.rungs[1].free <= 1e-5

    with monkeypatch.context() as patch:
        short_of_memory(patch)
        assert planned(again, LOOSE).record == record and "found with other options" in planned(again, LOOSE).note
    wide = "dipgo_deploy.runtime.preparation.find_islands"
    monkeypatch.setattr(wide, lambda *_: iter([("done", replace(record, islands=(), wide=()))]))
    assert made(again, LOOSE)[0][-1] == "float16 holds as exported"
    assert own_variant(load_bundle(bundle.folder, whole=True)) is None
    assert [path.name for path in bundle.folder.rglob("*.fp16.*")] == ["precision.fp16.json"]


@pytest.mark.parametrize("layout", ["subnets", "segments"])
def test_steps_run_on_the_graphs_that_engines_were_built_of(tmp_path: Path, monkeypatch, layout) -> None:
    """The graphs with islands come from another trace, whose values have other names here and there."""
    bundle = half_export(tiny("dit"), tmp_path / "half", layout, (1, 0.5, 0))
    monkeypatch.setattr(preparation, "_has_half_angles", lambda _: True)
    assert made(bundle)[0][-1] == "half-precision graphs written"
    bundle = load_bundle(bundle.folder)
    variant = own_variant(bundle)
    assert variant is not None

    def engine_backend(given, target, batch, **_):
        return variant.program, TensorRTBackend(Library(given.denoiser), variant.graphs, device="cpu")

    monkeypatch.setattr(opened, "engine_backend", engine_backend)
    engines, plain = (DeployedDenoiser.from_bundle(bundle, backend=name) for name in ("rtx", "onnxruntime"))
    generator = torch.Generator().manual_seed(0)
    for time in bundle.manifest.contract.sampler.timesteps:
        latent = torch.randn(1, 4, 8, 8, generator=generator).repeat(2, 1, 1, 1)
        given = (latent, torch.tensor([time, time]), torch.tensor([3, 1000]))
        found, wanted = (one(given[0], timestep=given[1], class_labels=given[2]).sample for one in (engines, plain))
        assert relative_difference(found.float().numpy(), wanted.float().numpy()) <= 2e-2


def test_a_bundle_in_bfloat16_is_judged_in_float32(tmp_path: Path) -> None:
    model = tiny("dit")
    folder = export(model, scheduled(model, (1, 0)), tmp_path / "half", ExportOptions(dtype="bfloat16"))
    report = verify(load_bundle(folder), VerifyOptions(images=1))
    assert report.passed and report.rungs[1].free <= 1e-5


def test_without_the_memory_for_float32_the_schedule_runs_once(tmp_path: Path, monkeypatch) -> None:
    bundle = half_export(tiny("dit"), tmp_path / "half")
    short_of_memory(monkeypatch)
    found = planned(bundle, OPTIONS)
    said = r"float16 as exported, without a search for islands: that takes \d+ MiB of memory, 0 are free"
    assert found.action == "look" and re.fullmatch(said, found.note)
    assert made(bundle) == (["running the schedule once"], None) and own_variant(bundle) is None
    monkeypatch.setattr(Session, "run", lambda *_: np.full(1, np.inf))
    with pytest.raises(GateError, match="not finite: build on a machine that has the memory"):
        made(bundle)


def test_what_cannot_be_searched_is_refused(tmp_path: Path) -> None:
    bundle = half_export(tiny("dit"), tmp_path / "half")
    assert planned(bundle, replace(OPTIONS, checked=False)) == Preparation("nothing")
    with pytest.raises(UsageError, match="the bundle is in float16, bfloat16 is wanted: export it in float32"):
        planned(bundle, replace(OPTIONS, precision="bfloat16"))
    with in_float32(bundle) as wide:
        folder = wide.folder
        assert planned(wide, replace(OPTIONS, precision=None)) == Preparation("nothing")
        with pytest.raises(UsageError, match="a bundle in float32 built in float32 has none: leave it out"):
            planned(wide, replace(LOOSE, precision=None))
    assert not folder.exists()
