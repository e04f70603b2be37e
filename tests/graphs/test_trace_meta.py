"""Traces without weights: the same blocks, MACs, bytes and programs as with weights."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from filelock import FileLock

from dipgo_deploy.bundle import export
from dipgo_deploy.core.blocks import BLOCKS_FILE
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.program import memory_bytes
from dipgo_deploy.graphs import Trace, load_trace, trace
from dipgo_deploy.lowering import lower
from dipgo_deploy.models import LoadedModel, load_random, make_contract
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.search import SearchOptions, schedule_by_rule
from tests.models.families import tiny


def without_weights(model: LoadedModel, folder) -> LoadedModel:
    """The same model on the device ``meta``."""
    model.module.save_config(folder)
    on_meta = load_random(folder, device="meta")
    kept = ("latent_shape", "text_tokens", "scheduler_config", "class_embedder", "guidance", "steps")
    return replace(on_meta, **{name: getattr(model, name) for name in kept})


@pytest.fixture(scope="module")
def traced_on_meta(reference_model, trace_cache, tmp_path_factory):
    """``traced_on_meta(name, granularity)``: model and trace of a shipped model without its weights."""

    @cache
    def get(name: str, granularity: str) -> tuple[LoadedModel, Trace]:
        on_meta = without_weights(reference_model(name), tmp_path_factory.mktemp("config"))
        with FileLock(trace_cache / f"{name}-{granularity}-meta.lock"):
            return on_meta, trace(on_meta, granularity=granularity)

    return get


def check_same(whole: LoadedModel, known, on_meta: LoadedModel, blocks, sampler: str) -> None:
    """Compare the BlockGraphs, and programs that are lowered from one schedule each."""
    assert not on_meta.has_weights and on_meta.weight_bytes == whole.weight_bytes
    assert blocks.blocks == known.blocks and blocks.inputs == known.inputs
    assert (blocks.macs, blocks.weight_bytes) == (known.macs, known.weight_bytes)
    assert [piece.macs for piece in blocks.pieces] == [piece.macs for piece in known.pieces]
    programs = []
    for model, graph in ((whole, known), (on_meta, blocks)):
        contract = make_contract(model, sampler=sampler, steps=4, guidance="none")
        schedule = schedule_by_rule(graph, contract, SearchOptions("random", 0.5))
        programs.append(lower(schedule, graph, read_sampler(contract.sampler)))
    assert memory_bytes(programs[0], 2) == memory_bytes(programs[1], 2) and programs[0].macs == programs[1].macs


@pytest.mark.parametrize(
    ("name", "granularity"), [pytest.param("digits-unet", "stage", marks=pytest.mark.slow), ("digits-dit", "branch")]
)
def test_a_shipped_model_gives_the_same_blocks_without_weights(
    name, granularity, reference_model, traced, traced_on_meta
) -> None:
    on_meta, made = traced_on_meta(name, granularity)
    check_same(reference_model(name), traced(name, granularity).blocks, on_meta, made.blocks, "ddim")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "granularity"), [("sd", "stage"), ("flux", "branch")])
def test_a_family_gives_the_same_blocks_without_weights(name, granularity, tmp_path) -> None:
    whole = tiny(name)
    with torch.no_grad():
        for parameter in whole.module.parameters():
            parameter += 0.1 * torch.rand(parameter.shape)  # Norms that start equal would share their weights.
    on_meta = without_weights(whole, tmp_path / "config")
    known, blocks = (trace(model, granularity=granularity).blocks for model in (whole, on_meta))
    check_same(whole, known, on_meta, blocks, "flow-euler" if name == "flux" else "ddim")


def test_nothing_is_cut_without_weights(traced_on_meta, tmp_path) -> None:
    on_meta, made = traced_on_meta("digits-dit", "branch")
    assert sorted(path.name for path in made.folder.iterdir()) == [BLOCKS_FILE, "config.json"]
    with pytest.raises(InputError, match=r"has no master.onnx: trace the model again"):
        load_trace(made.folder)
    schedule = schedule_by_rule(made.blocks, make_contract(on_meta, steps=4), SearchOptions("uniform", 0.5))
    with pytest.raises(InputError, match="DiTTransformer2DModel (has shapes alone|was loaded without weights)"):
        export(on_meta, schedule, tmp_path / "bundle")
