"""Text encoder and VAE of a bundle: copied by export, timed once, counted on both sides."""

from __future__ import annotations

import sys

import pytest
import torch

from dipgo_deploy.bench import BenchOptions, bench
from dipgo_deploy.bench.pipeline_overhead import time_pipeline_overhead
from dipgo_deploy.bundle import export, load_bundle
from dipgo_deploy.core.progress import finish
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.models import load_model, make_contract
from dipgo_deploy.search import SearchOptions, schedule_by_rule
from tests.models.pipelines import pipeline_from

OPTIONS = BenchOptions(batch=2, repeats=2, images=2, converged_images=0, tuning_images=2, run=RunOptions(threads=1))


@pytest.fixture(scope="module")
def bundle(digits_unet, traced, tmp_path_factory):
    """A bundle with a text encoder and a VAE next to the denoiser, guided."""
    folder = tmp_path_factory.mktemp("overhead")
    model = load_model(pipeline_from(digits_unet.folder, folder / "model"))
    contract = make_contract(model, steps=4, guidance="concat")
    schedule = schedule_by_rule(traced("digits-unet", "stage").blocks, contract, SearchOptions("uniform", 0.5))
    return load_bundle(export(model, schedule, folder / "bundle"))


def test_text_encoder_and_vae_are_timed(bundle):
    before = torch.get_num_threads()
    overhead = finish(time_pipeline_overhead(bundle, OPTIONS))
    assert list(overhead.components_ms) == ["text_encoder", "vae"] and overhead.left_out == []
    assert all(ms > 0 for ms in overhead.components_ms.values())
    assert overhead.total_ms == sum(overhead.components_ms.values())
    assert torch.get_num_threads() == before


def test_a_bundle_without_them_has_no_end_to_end(bundle_folder):
    overhead = finish(time_pipeline_overhead(load_bundle(bundle_folder), OPTIONS))
    assert (overhead.components_ms, overhead.left_out, overhead.total_ms) == ({}, [], None)


def test_without_transformers_the_text_encoder_is_left_out_in_one_line(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    overhead = finish(time_pipeline_overhead(bundle, OPTIONS))
    assert list(overhead.components_ms) == ["vae"]
    line = "text_encoder is left out: transformers is not installed: pip install transformers"
    assert list(map(str, overhead.left_out)) == [line]


def test_the_end_to_end_speedup_is_nearer_to_one(bundle):
    report = finish(bench(bundle, OPTIONS))
    assert report.components_ms.keys() == {"text_encoder", "vae"}
    full, schedule, *_ = report.rows
    assert (full.speedup_end_to_end, full.speedup) == (1.0, 1.0)
    assert abs(schedule.speedup_end_to_end - 1) < abs(schedule.speedup - 1)
