"""The schedule published for Stable Diffusion 1.5 on that architecture, narrow and with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.sampler import LinearSampler, Update
from dipgo_deploy.graphs import trace
from dipgo_deploy.lowering import LowerOptions, lower
from dipgo_deploy.models.contracts import make_contract
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.models.sources.module import model_from_module
from dipgo_deploy.search.interchange.dipgo import schedule_from_table
from tests.search.graphs import contract_of, unet_like

PUBLISHED = json.loads((Path(__file__).parent.parent / "data" / "dipgo_sd15_ratio080.json").read_text())
CALLS = [0, 7, 13, 19, 20, 21, 26, 32, 39, 48]


@pytest.fixture(scope="module")
def narrow_sd15():
    """The blocks of Stable Diffusion 1.5's U-Net at a tenth of its width, 16 pixels of latent."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=16, block_out_channels=(32, 64, 64, 64), layers_per_block=2, cross_attention_dim=32
    )
    scheduler = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    return model_from_module(unet, component="unet", scheduler_config=scheduler)


def test_the_published_schedule_lowers_to_ten_calls_of_two_graphs() -> None:
    """On a graph made by hand with the same stages."""
    graph = unet_like(4)
    schedule = schedule_from_table(PUBLISHED["compute"], graph, contract_of(graph, 50), PUBLISHED["source"])
    assert schedule.origin["source"] == PUBLISHED["source"]
    assert set(schedule.blocks) - schedule.computed[7] == {"down_blocks.3"}
    program = lower(schedule, graph, LinearSampler(1.0, (1.0,) * 50, (Update((1.0,), (0.1,)),) * 50))
    assert [run.step for run in program.runs] == CALLS and program.nfe == 10 and len(program.graphs) == 2


@pytest.mark.slow
def test_the_published_schedule_makes_ten_calls_of_two_graphs(narrow_sd15) -> None:
    blocks = trace(narrow_sd15, granularity="stage").blocks
    assert set(PUBLISHED["compute"]) == set(blocks.block_names[:-1])
    contract = make_contract(narrow_sd15, sampler="ddim", steps=50, guidance="concat")
    schedule = schedule_from_table(PUBLISHED["compute"], blocks, contract, PUBLISHED["source"])
    assert schedule.steps == 50 and schedule.origin["source"] == PUBLISHED["source"]
    assert set(schedule.blocks) - schedule.computed[7] == {"down_blocks.3"}
    sampler = read_sampler(contract.sampler)
    whole = lower(schedule, blocks, sampler)
    assert [run.step for run in whole.runs] == CALLS and whole.nfe == 10
    assert len(whole.graphs) == 2 <= 3
    assert len(whole.calls) <= 3 * len(CALLS)
    segments = lower(schedule, blocks, sampler, LowerOptions("segments"))
    assert segments.nfe == 10 and segments.macs == whole.macs
    assert sum(graph.weight_bytes for graph in segments.graphs) <= 1.01 * blocks.weight_bytes
    assert 0.79 < 1 - whole.macs.papers / whole.full_macs.papers < 0.81


GRAPH = unet_like(1)
TABLE = {"down_blocks.0": "1100", "mid_block": "1000", "up_blocks.0": "1000"}


def test_whole_steps_reuse_the_prediction() -> None:
    schedule = schedule_from_table(TABLE, GRAPH, contract_of(GRAPH, 4))
    assert [len(step) for step in schedule.computed] == [4, 2, 0, 0]
    assert schedule.computed[1] == {"down_blocks.0", "prediction"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tail": "1000"}, "the table and the model differ in block tail: trace with blocks down_blocks.0, mid_block"),
        ({"mid_block": "100"}, "mid_block needs 4 characters 0 or 1, one per network call, found '100': fix it"),
        ({"mid_block": "1 00"}, "mid_block needs 4 characters 0 or 1, one per network call, found '1 00'"),
        ({"mid_block": "0100"}, "step 0 reuses mid_block from 1 computed"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change, message) -> None:
    with pytest.raises(InputError, match=message):
        schedule_from_table(TABLE | change, GRAPH, contract_of(GRAPH, 4))
