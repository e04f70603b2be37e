"""The sources of reused features, and every refusal of a schedule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.schedule import Schedule, check_schedule, full_schedule, in_order
from tests.search.graphs import contract_of, unet_like

GRAPH = unet_like(1)
NAMES = GRAPH.block_names
FULL = full_schedule(contract_of(GRAPH, 5), "stage", "output", NAMES)


def rows(*bits: str) -> tuple[tuple[bool, ...], ...]:
    """One string per step, one character per block."""
    return tuple(tuple(bit == "1" for bit in row) for row in bits)


MIXED = replace(FULL, compute=rows("1111", "1011", "0111", "1000", "1111"))


def test_the_full_schedule_computes_everything():
    check_schedule(FULL, NAMES)
    assert FULL.steps == 5 and all(step == set(NAMES) for step in FULL.computed)
    assert FULL.origin == {"method": "full"}


def test_backups_are_the_last_computed_features_newest_first():
    assert MIXED.earlier(4, "mid_block") == [2, 0]
    assert MIXED.sources(3, "mid_block") == ((2, 1.0),)
    forecast = replace(MIXED, forecasts={(3, "up_blocks.0"): (1.5, -0.5, 0.25), (1, "mid_block"): (0.9,)})
    check_schedule(forecast, NAMES)
    assert forecast.sources(3, "up_blocks.0") == ((2, 1.5), (1, -0.5), (0, 0.25))
    assert forecast.sources(1, "mid_block") == ((0, 0.9),)
    assert forecast.sources(3, "prediction") == ((2, 1.0),)


def test_computing_more_drops_the_forecasts_it_replaces():
    forecast = replace(MIXED, forecasts={(3, "mid_block"): (1.5, -0.5), (3, "up_blocks.0"): (2.0, -1.0)})
    wider = forecast.with_compute([*MIXED.computed[:3], frozenset({"mid_block"}), MIXED.computed[4]])
    assert wider.forecasts == {(3, "up_blocks.0"): (2.0, -1.0)}
    assert wider.computed[3] == {"mid_block"} and wider.computed[:3] == MIXED.computed[:3]
    check_schedule(wider, NAMES)


BROKEN = {
    "blocks": (
        replace(MIXED, blocks=("down_block.0", *NAMES[1:])),
        r"block 'down_block.0', which is none of the model's 4 blocks .* \(near: down_blocks.0.*\): rename it, or",
    ),
    "order": (replace(MIXED, blocks=(NAMES[1], NAMES[0], *NAMES[2:])), "but in another order"),
    "steps": (replace(MIXED, compute=MIXED.compute[:4]), "has 4 steps, its sampler makes 5 network calls: give one"),
    "row": (replace(MIXED, compute=(*MIXED.compute[:4], (True,))), "step 4 has 1 entries for 4 blocks: give one each"),
    "reads before it wrote": (
        replace(MIXED, compute=rows("1011", "0011", "0011", "0011", "1111")),
        r"step 0 reuses mid_block from 1 computed feature\(s\), but it was computed only 0 time\(s\) before: compute",
    ),
    "short history": (
        replace(MIXED, forecasts={(2, "down_blocks.0"): (1.0, 1.0, -1.0)}),
        r"step 2 reuses down_blocks.0 from 3 computed feature\(s\), but it was computed only 2 time\(s\)",
    ),
    "empty forecast": (replace(MIXED, forecasts={(1, "mid_block"): ()}), "step 1 of mid_block has no coefficients"),
    "forecast of nothing": (replace(MIXED, forecasts={(1, "tail"): (1.0,)}), "step 1 of tail, which does not exist"),
    "forecast past the end": (replace(MIXED, forecasts={(5, NAMES[0]): (1.0,)}), "step 5 of .*, which does not exist"),
    "forecast of a computed block": (
        replace(MIXED, forecasts={(1, "down_blocks.0"): (1.0,)}),
        "step 1 of down_blocks.0, which is computed there: remove one",
    ),
    "experts": (replace(MIXED, experts=("main", "other")), "2 experts for 5 steps: name one expert per step"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_schedules_that_cannot_be_run_are_refused(case):
    schedule, message = BROKEN[case]
    with pytest.raises(InputError, match=message):
        check_schedule(schedule, NAMES)


def test_the_prediction_is_the_last_block_of_every_schedule():
    for blocks, message in (
        ((), "has no block 'prediction': add"),
        (NAMES[:-1], "has no block 'prediction': add"),
        ((*NAMES[:-1], "predicton"), r"has no block 'prediction' \(near: predicton\): add"),
        ((*NAMES, "up"), "'prediction' must be the last block, found 'up' after it"),
    ):
        schedule = Schedule(FULL.contract, "stage", "output", blocks, ((True,) * len(blocks),) * 5)
        with pytest.raises(InputError, match=message):
            check_schedule(schedule)


def test_the_order_of_the_blocks_in_a_file_does_not_matter():
    shuffled = [3, 1, 0, 2]
    other = replace(
        MIXED,
        blocks=tuple(NAMES[i] for i in shuffled),
        compute=tuple(tuple(row[i] for i in shuffled) for row in MIXED.compute),
    )
    assert in_order(other, NAMES) == MIXED and in_order(MIXED, NAMES) is MIXED
    with pytest.raises(InputError, match="has no block 'mid_block', which the model has at granularity stage: add it"):
        in_order(replace(MIXED, blocks=("down_blocks.0", "up_blocks.0", "prediction")), NAMES)
