"""Text encoder and VAE of a bundle: copied by export, timed once, counted on both sides."""

from __future__ import annotations

import sys

import pytest
import torch

from dipgo_deploy.bench import BenchOptions, bench
from dipgo_deploy.bench.surroundings import time_surroundings
from dipgo_deploy.bundle import export, load_bundle
from dipgo_deploy.models import load_model, make_contract
from dipgo_deploy.search import SearchOptions, schedule_by_rule
from tests.models.pipelines import pipeline_from

OPTIONS = BenchOptions(batch=2, repeats=2, images=2, converged_images=0, tuning_images=2, threads=1)


def last(generator):
    """What a generator returns."""
    while True:
        try:
            next(generator)
        except StopIteration as stop:
            return stop.value


@pytest.fixture(scope="module")
def bundle(digits_unet, traced, tmp_path_factory):
    """A bundle with a text encoder and a VAE beside the denoiser, guided."""
    folder = tmp_path_factory.mktemp("surroundings")
    model = load_model(pipeline_from(digits_unet.folder, folder / "model"))
    contract = make_contract(model, steps=4, guidance="concat")
    schedule = schedule_by_rule(traced("digits-unet", "stage").blocks, contract, SearchOptions("uniform", 0.5))
    return load_bundle(export(model, schedule, folder / "bundle"))


def test_text_encoder_and_vae_are_timed(bundle):
    before = torch.get_num_threads()
    found = last(time_surroundings(bundle, OPTIONS))
    assert list(found.components_ms) == ["text_encoder", "vae"] and found.left_out == []
    assert all(ms > 0 for ms in found.components_ms.values())
    assert found.total_ms == sum(found.components_ms.values())
    assert torch.get_num_threads() == before


def test_a_bundle_without_them_has_no_end_to_end(bundle_folder):
    found = last(time_surroundings(load_bundle(bundle_folder), OPTIONS))
    assert (found.components_ms, found.left_out, found.total_ms) == ({}, [], None)


def test_without_transformers_the_text_encoder_is_left_out_in_one_line(bundle, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    found = last(time_surroundings(bundle, OPTIONS))
    assert list(found.components_ms) == ["vae"]
    line = "text_encoder is left out: transformers is not installed: pip install transformers"
    assert list(map(str, found.left_out)) == [line]


def test_the_end_to_end_speedup_is_nearer_to_one(bundle):
    *_, report = bench(bundle, OPTIONS)
    assert report.components_ms.keys() == {"text_encoder", "vae"}
    full, schedule, *_ = report.rows
    assert (full.speedup_end_to_end, full.speedup) == (1.0, 1.0)
    assert abs(schedule.speedup_end_to_end - 1) < abs(schedule.speedup - 1)
