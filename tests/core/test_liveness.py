"""Liveness on graphs small enough to write the answer out by hand."""

from __future__ import annotations

import pytest

from dipgo_deploy.core.blocks import BlockGraph, Kind, Macs
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.liveness import StepPlan, plan_steps, pruned_ratio, reach, schedule_macs
from dipgo_deploy.core.schedule import Schedule
from tests.search.graphs import chain_like, contract_of, unet_like

# unet_like(1): 0 stem, 1 emb, 2 down_blocks.0 (:0 hidden, :1 skip), 3 mid_block, 4 up_blocks.0, 5 prediction.
# chain_like(3): 0 stem, 1 emb, 2 3 4 transformer_blocks.0 .1 .2, 5 prediction (reads the last block and emb).
UNET, CHAIN = unet_like(1), chain_like(3)


def schedule_of(graph: BlockGraph, *columns: str, kind: Kind = "output", **fields) -> Schedule:
    """One string of 0 and 1 per block, in execution order."""
    compute = tuple(tuple(bit == "1" for bit in row) for row in zip(*columns, strict=True))
    return Schedule(contract_of(graph, len(columns[0])), "stage", kind, graph.block_names, compute, **fields)


def facts(plan: StepPlan) -> tuple[set[int], set[str], set[str]]:
    return set(plan.reach.pieces), set(plan.reach.reads), set(plan.writes)


def test_a_skipped_block_kills_what_only_it_needs() -> None:
    """Step 1 reuses the mid block: its producer runs for the skip connection, at step 2 nothing needs that either."""
    plans = plan_steps(schedule_of(UNET, "111", "100", "110", "111"), UNET)
    assert facts(plans[0]) == ({0, 1, 2, 3, 4, 5}, set(), {"mid_block:0", "prediction"})
    assert facts(plans[1]) == ({0, 1, 2, 4, 5}, {"mid_block:0"}, {"prediction", "up_blocks.0:0"})
    assert facts(plans[2]) == ({5}, {"up_blocks.0:0"}, {"prediction"})
    assert [set(plan.reach.computes) for plan in plans] == [
        {"down_blocks.0", "mid_block", "up_blocks.0", "prediction"},
        {"down_blocks.0", "up_blocks.0", "prediction"},
        {"prediction"},
    ]


def test_only_the_features_that_are_read_are_written() -> None:
    """The skip connection of the reused down block is read, its hidden state is not: the mid block is reused too."""
    plans = plan_steps(schedule_of(UNET, "10", "10", "11", "11"), UNET)
    assert facts(plans[0])[2] == {"down_blocks.0:1", "mid_block:0", "prediction"}
    assert facts(plans[1]) == ({1, 4, 5}, {"down_blocks.0:1", "mid_block:0"}, {"prediction"})


def test_a_chain_of_outputs_has_only_a_depth_to_choose() -> None:
    """Reusing the middle block makes the one before it dead, though it is computed."""
    plans = plan_steps(schedule_of(CHAIN, "11", "10", "11", "11"), CHAIN)
    assert facts(plans[0])[2] == {"transformer_blocks.1:0", "prediction"}
    assert facts(plans[1]) == ({1, 4, 5}, {"transformer_blocks.1:0"}, {"prediction"})
    assert plans[1].reach.computes == {"transformer_blocks.2", "prediction"}


@pytest.mark.parametrize("bits", [f"{n:03b}" for n in range(8)])
def test_of_residuals_any_subset_runs_alone(bits: str) -> None:
    plans = plan_steps(schedule_of(CHAIN, *(f"1{bit}" for bit in bits), "11", kind="residual"), CHAIN)
    skipped = {f"transformer_blocks.{i}:residual" for i, bit in enumerate(bits) if bit == "0"}
    assert facts(plans[0])[2] == skipped | {"prediction"}
    assert facts(plans[1]) == ({0, 1, 5} | {2 + i for i, bit in enumerate(bits) if bit == "1"}, skipped, {"prediction"})


def test_a_step_that_reuses_the_prediction_and_feeds_nothing_is_no_call() -> None:
    plans = plan_steps(schedule_of(CHAIN, "111", "111", "111", "101"), CHAIN)
    assert [plan.is_call for plan in plans] == [True, False, True]
    assert facts(plans[1]) == (set(), set(), set())


def test_a_step_may_call_for_a_feature_alone() -> None:
    """Step 1 reuses the prediction, but step 2 stands on a feature computed there: the tail does not run."""
    plans = plan_steps(schedule_of(CHAIN, "110", "110", "111", "101"), CHAIN)
    assert facts(plans[1]) == ({0, 1, 2, 3}, set(), {"transformer_blocks.1:0"})


def test_forecasts_keep_the_features_of_several_steps() -> None:
    forecasts = {(2, "mid_block"): (2.0, -1.0)}
    plans = plan_steps(schedule_of(UNET, "111", "110", "111", "111", forecasts=forecasts), UNET)
    assert [facts(plan)[2] for plan in plans] == [
        {"mid_block:0", "prediction"},
        {"mid_block:0", "prediction"},
        {"prediction"},
    ]


def test_a_read_before_the_first_write_names_step_and_block() -> None:
    with pytest.raises(InputError, match="step 1 reuses mid_block from 1 computed .* only 0 time"):
        plan_steps(schedule_of(UNET, "11", "00", "11", "01"), UNET)


def test_shared_rows_write_the_same_until_nothing_is_added() -> None:
    """Steps 1 and 2 compute down and mid block. Step 3 wants mid of step 2: sharing makes step 1 write it as well,
    whose reach then needs the down block, computed there, and the stem.
    """
    columns = ("1110", "1110", "1001", "1111")
    alone = plan_steps(schedule_of(UNET, *columns), UNET)
    assert facts(alone[1]) == ({5}, {"up_blocks.0:0"}, {"prediction"})
    assert facts(alone[2]) == ({0, 1, 2, 3, 5}, {"up_blocks.0:0"}, {"prediction", "down_blocks.0:1", "mid_block:0"})
    shared = plan_steps(schedule_of(UNET, *columns), UNET, share_rows=True)
    assert shared[1].writes == shared[2].writes == {"prediction", "down_blocks.0:1", "mid_block:0"}
    assert shared[1].reach == shared[2].reach == alone[2].reach
    assert (shared[0], shared[3]) == (alone[0], alone[3])


def test_sharing_reaches_a_fixed_point_over_several_rounds() -> None:
    """Round one: step 1 writes block 1 like step 3, so it reads block 0 of step 0, which writes it. Round two: step 5,
    of the same row as step 0, writes it too.
    """
    columns = ("1010010", "1101010", "1000110", "1101111")
    alone = plan_steps(schedule_of(CHAIN, *columns), CHAIN)
    shared = plan_steps(schedule_of(CHAIN, *columns), CHAIN, share_rows=True)
    outermost = {"transformer_blocks.2:0", "prediction"}
    assert alone[0].writes == alone[5].writes == outermost
    assert alone[1].writes == {"prediction"}
    assert shared[1].writes == shared[3].writes == alone[3].writes == {"prediction", "transformer_blocks.1:0"}
    assert shared[1].reach.reads == {"transformer_blocks.0:0", "transformer_blocks.2:0"}
    assert shared[0].writes == shared[5].writes == outermost | {"transformer_blocks.0:0"}


def test_reach_can_be_asked_for_any_value() -> None:
    found = reach(UNET, frozenset({"mid_block"}), ["mid_block:0", "emb"], "output")
    assert (found.pieces, found.reads, found.computes) == ({1, 3}, {"down_blocks.0:0"}, {"mid_block"})


def test_costs_are_those_of_the_pieces_that_run() -> None:
    """unet_like(1), papers: stem 16, emb 1, down 800, mid 50, up 1600, tail 50."""
    schedule = schedule_of(UNET, "10", "10", "11", "11")
    assert UNET.macs.papers == 2517
    assert schedule_macs(schedule, UNET) == Macs(2517 + 1 + 1600 + 50, 2517 + 251 + 1 + 1760 + 55)
    assert pruned_ratio(schedule, UNET) == pytest.approx(1 - (2517 + 1651) / (2 * 2517))
