"""Every format: read, written, read again; what it cannot say; documents that are damaged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dipgo_deploy.core.errors import DipgoError, InputError, UsageError
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.search.interchange import FORMATS, export_schedule, import_schedule
from tests.search.interchange.models import BRANCHES, STAGES, UNET, contract_of, graph_of

GRAPHS = {
    "deepcache": graph_of(UNET, "layer"),
    "fora": graph_of(BRANCHES, "branch"),
    "smoothcache": graph_of(BRANCHES, "branch"),
    "cache-dit": graph_of(STAGES, "stage", residuals=True),
    "dipgo": graph_of(STAGES, "stage"),
}
SIX = contract_of(6)
STATIC = {"steps_computation_policy": "static"}
MASK = {**STATIC, "steps_computation_mask": [1, 0, 0, 1, 1, 0]}


def table(*, steps: str = "100110", mid: str = "100100") -> dict[str, dict[str, str]]:
    return {"compute": {name: mid if name == "transformer_blocks.2" else steps for name in STAGES}}


DOCUMENTS = [
    *(("deepcache", {"cache_interval": n, "cache_branch_id": b}) for n in (2, 4, 6) for b in range(6)),
    ("deepcache", {"cache_interval": 1}),
    *(("fora", {"interval": n}) for n in (1, 2, 5, 6)),
    ("smoothcache", {"attn1": [1, 0, 0, 1, 0, 0], "ff": [1, 1, 0, 0, 1, 0]}),
    ("smoothcache", {"attn1": [1, 0, 0, 1, 0, 0]}),
    ("smoothcache", {"attn-1": [1, 0, 0, 1, 0, 0], "mlp": [1, 0, 1, 0, 1, 0], "ff-2": [1, 0, 0, 0, 0, 0]}),
    *(("cache-dit", {**MASK, "Fn_compute_blocks": f, "Bn_compute_blocks": b}) for f in (1, 3) for b in (0, 1)),
    ("cache-dit", {"cache_config": {**MASK, "Fn_compute_blocks": 2, "residual_diff_threshold": 0.1}}),
    ("dipgo", table()),
]


@pytest.mark.parametrize(("name", "document"), DOCUMENTS)
def test_what_is_written_reads_as_the_same_schedule(name, document):
    schedule = import_schedule(name, document, GRAPHS[name], SIX)
    assert schedule.kind == FORMATS[name].kind and schedule.origin["method"]
    assert import_schedule(name, export_schedule(name, schedule), GRAPHS[name], SIX) == schedule


@pytest.mark.parametrize("name", FORMATS)
def test_the_full_run_can_be_said_in_every_format(name):
    graph = GRAPHS[name]
    full = full_schedule(SIX, graph.granularity, FORMATS[name].kind, graph.block_names)
    assert import_schedule(name, export_schedule(name, full), graph, SIX) == full


def test_documents_come_back_as_they_were():
    for name, document in (
        ("deepcache", {"cache_interval": 3, "cache_branch_id": 4, "skip_mode": "uniform"}),
        ("fora", {"interval": 3}),
        ("smoothcache", {"attn1": [1, 0, 0, 1, 0, 0], "ff": [1, 1, 0, 0, 1, 0]}),
        ("dipgo", {**table(), "source": "a paper"}),
    ):
        assert export_schedule(name, import_schedule(name, document, GRAPHS[name], SIX)) == document


OUTER = ["up_blocks.1.resnets.2", "up_blocks.1.attentions.2", "prediction"]
FIRST = ["down_blocks.0.resnets.0", "down_blocks.0.attentions.0"]
LEVEL_0 = [name for name in UNET if name.startswith(("down_blocks.0", "up_blocks.1"))]


@pytest.mark.parametrize(
    ("branch", "computed"),
    [
        (0, OUTER),
        (1, [*FIRST, "up_blocks.1.resnets.1", "up_blocks.1.attentions.1", *OUTER]),
        (2, [name for name in (*LEVEL_0, "prediction") if "downsamplers" not in name]),
        (3, [*LEVEL_0, "prediction", "up_blocks.0.resnets.2", "up_blocks.0.upsamplers.0"]),
        (4, [*LEVEL_0, "prediction", "up_blocks.0.upsamplers.0", "down_blocks.1.resnets.0",
             "up_blocks.0.resnets.1", "up_blocks.0.resnets.2"]),
        (5, [name for name in (*UNET, "prediction") if not name.startswith("mid_block")]),
    ],
)  # fmt: skip
def test_a_branch_computes_these_layers_between_full_steps(branch, computed):
    document = {"cache_interval": 3, "cache_branch_id": branch}
    schedule = import_schedule("deepcache", document, GRAPHS["deepcache"], SIX)
    assert [len(row) == len(UNET) + 1 for row in schedule.computed] == [1, 0, 0, 1, 0, 0]
    assert schedule.computed[1] == schedule.computed[5] == set(computed)


def test_calls_at_one_timestep_count_once():
    heun = contract_of([1000, 800, 800, 600, 600, 400])
    schedule = import_schedule("deepcache", {"cache_interval": 3}, GRAPHS["deepcache"], heun)
    assert [len(row) == len(UNET) + 1 for row in schedule.computed] == [1, 0, 0, 1, 1, 0]


def test_masks_reuse_the_blocks_between_the_ends():
    document = {**MASK, "Fn_compute_blocks": 2, "Bn_compute_blocks": 1}
    schedule = import_schedule("cache-dit", document, GRAPHS["cache-dit"], SIX)
    assert [len(row) for row in schedule.computed] == [6, 4, 4, 6, 6, 4]
    assert set(STAGES) - schedule.computed[1] == {"transformer_blocks.2", "transformer_blocks.3"}


def test_lists_of_one_block_stand_above_those_of_its_type():
    document = {"attn": [1, 0, 0, 1, 0, 0], "attn-2": [1, 0, 0, 0, 0, 1]}
    schedule = import_schedule("smoothcache", document, GRAPHS["smoothcache"], SIX)
    assert [schedule.is_computed(s, "transformer_blocks.2.attn1") for s in range(6)] == [1, 0, 0, 0, 0, 1]
    assert [schedule.is_computed(s, "transformer_blocks.1.attn1") for s in range(6)] == [1, 0, 0, 1, 0, 0]
    assert all(schedule.is_computed(s, "transformer_blocks.1.ff") for s in range(6))


@pytest.mark.parametrize(
    ("name", "document", "message"),
    [
        ("deepcache", {"cache_interval": 0}, "deepcache: cache_interval: Input should be greater than or equal to 1"),
        ("deepcache", {"cache_interval": "5"}, "cache_interval: Input should be a valid integer, found \"5\""),
        ("deepcache", {"cache_branch_id": 6}, "cache_branch_id 6 lies below the model's 2 levels: give at most 5"),
        ("deepcache", {"skip_mode": "quad"}, "skip_mode: Input should be 'uniform', found \"quad\": fix"),
        ("deepcache", {"interval": 5}, "deepcache: interval: Unexpected keyword argument"),
        ("fora", {}, "fora: interval: Field required"),
        ("fora", {"interval": 2.5}, "fora: interval: Input should be a valid integer"),
        ("smoothcache", {"attn1": [1, 0]}, "attn1 has 2 entries, the sampler makes 6 network calls: give one each"),
        ("smoothcache", {"attn1": [1, 0, 2, 0, 0, 0]}, "smoothcache: attn1.2: Input should be 0 or 1, found 2"),
        ("smoothcache", {"attn1": [0, 1, 0, 0, 0, 0]}, "step 0 reuses transformer_blocks.0.attn1 from 1 computed"),
        ("smoothcache", {"attn1": "100000"}, "smoothcache: attn1: Input should be a valid array"),
        ("smoothcache", {"conv": [1] * 6}, "the model has no layer 'conv', its types are attn1, ff: fix"),
        ("smoothcache", {"attn1-7": [1] * 6}, "the model has no layer 'attn1-7'"),
        ("smoothcache", {"attn1": [1] * 6, "attn": [1] * 6}, "two lists are for attn1: leave one out"),
        ("cache-dit", MASK, "the first 8 and the last 0 blocks leave none of 5 between them: give fewer"),
        ("cache-dit", {**MASK, "Fn_compute_blocks": 0}, "Fn_compute_blocks: Input should be greater than or"),
        ("cache-dit", {**MASK, "steps_computation_policy": "dynamic"}, "steps_computation_policy: Input should be 'st"),
        ("cache-dit", {**STATIC, "steps_computation_mask": "fast"}, "steps_computation_mask: Input should be a valid"),
        ("cache-dit", {**STATIC, "steps_computation_mask": [1]}, "has 1 entries, the sampler makes 6 network calls"),
        ("cache-dit", {**MASK, "force_refresh_step_hint": 3}, "force_refresh_step_hint: Unexpected keyword"),
        ("cache-dit", {"cache_config": 3}, "cache-dit: cache_config: Input should be"),
        ("cache-dit", {"cache_config": MASK, "calibrator_config": {}}, "calibrator_config: Unexpected keyword"),
        ("dipgo", {"compute": {"mid_block": "100000"}}, "the table and the model differ in block mid_block"),
        ("dipgo", {"compute": {name: 1 for name in STAGES}}, "dipgo: compute.transformer_blocks.0: Input should be a"),
        ("dipgo", table(steps="10"), "needs 6 characters 0 or 1, one per network call, found '10'"),
    ],
)  # fmt: skip
def test_documents_that_are_damaged_or_do_not_fit_are_refused_in_one_line(name, document, message):
    with pytest.raises(InputError) as found:
        import_schedule(name, document, GRAPHS[name], SIX)
    assert message in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("name", "document", "graph", "message"),
    [
        ("deepcache", {}, GRAPHS["dipgo"], "deepcache describes blocks of granularity layer, .* traced at stage"),
        ("deepcache", {}, graph_of(STAGES, "layer"), "layers of a U-Net, but transformer_blocks.0 is not one"),
        ("fora", {"interval": 2}, graph_of(UNET, "branch"), "branches of a transformer, but down_blocks.0.resnets.0"),
        ("cache-dit", {**MASK, "Fn_compute_blocks": 1}, GRAPHS["dipgo"], "step 1: cache-dit reuses what transformer_b"),
        ("abacus", {}, GRAPHS["dipgo"], "format 'abacus' is unknown: choose deepcache, fora"),
    ],
)  # fmt: skip
def test_models_that_a_format_does_not_speak_of_are_refused(name, document, graph, message):
    with pytest.raises(DipgoError, match=message):
        import_schedule(name, document, graph, SIX)


def schedule_of(name: str, changes: dict[tuple[int, str], bool], steps: int = 4):
    """A schedule of the full run but for ``changes``, with the blocks and kind of a format."""
    graph = GRAPHS[name]
    full = full_schedule(contract_of(steps), graph.granularity, FORMATS[name].kind, graph.block_names)
    rows = [{**dict.fromkeys(full.blocks, True)} for _ in range(steps)]
    for (step, block), on in changes.items():
        rows[step][block] = on
    return full.with_compute([frozenset(block for block, on in row.items() if on) for row in rows])


ATTN, FF = "transformer_blocks.1.attn1", "transformer_blocks.1.ff"
SAYS_NO = [
    (
        "deepcache",
        {(1, "mid_block.resnets.0"): False},
        "step 1 computes mid_block.attentions.0, but deepcache with interval",
    ),
    ("deepcache", {(2, "prediction"): False}, "step 1 computes mid_block.resnets.0, but deepcache with"),
    (
        "fora",
        {(2, ATTN): False},
        "step 2 reuses transformer_blocks.1.attn1, but fora with interval 1, the nearest match",
    ),
    ("fora", {(3, "prediction"): False}, "step 3 reuses prediction, but fora with interval 1, the nearest match"),
    ("smoothcache", {(3, "prediction"): False}, "step 3 reuses prediction, but smoothcache computes it at every step"),
    (
        "cache-dit",
        {(1, "transformer_blocks.0"): False},
        "step 1 reuses transformer_blocks.0, but cache-dit with the first 1",
    ),
    (
        "cache-dit",
        {(1, STAGES[1]): False, (2, STAGES[2]): False},
        "step 2 computes transformer_blocks.1, but cache-dit",
    ),
    (
        "cache-dit",
        {(2, STAGES[1]): False, (2, STAGES[3]): False},
        "step 2 computes transformer_blocks.2, but cache-dit",
    ),
    ("cache-dit", {(2, "prediction"): False}, "step 2 computes transformer_blocks.1, but cache-dit with the first 1"),
    ("dipgo", {(1, "prediction"): False}, "step 1 computes transformer_blocks.0 alone of blocks and prediction"),
    ("dipgo", {(1, name): False for name in STAGES}, "step 1 computes prediction alone of blocks and prediction"),
]


@pytest.mark.parametrize(("name", "changes", "message"), SAYS_NO)
def test_what_a_format_cannot_say_is_refused_with_step_and_block(name, changes, message):
    with pytest.raises(InputError) as found:
        export_schedule(name, schedule_of(name, changes))
    assert message in str(found.value) and "write" in str(found.value) and "\n" not in str(found.value)


def test_two_layers_of_one_number_cannot_be_told_apart():
    names = ("transformer_blocks.0.attn", "single_transformer_blocks.0.attn")
    full = full_schedule(contract_of(3), "branch", "output", (*names, "prediction"))
    schedule = full.with_compute([full.computed[0], full.computed[0] - {names[1]}, full.computed[0]])
    with pytest.raises(InputError, match="step 1 treats single_transformer_blocks.0.attn and another layer"):
        export_schedule("smoothcache", schedule)


@pytest.mark.parametrize("name", FORMATS)
def test_kinds_forecasts_and_experts_have_no_words_elsewhere(name):
    schedule = schedule_of(name, {(step, GRAPHS[name].block_names[2]): False for step in (2, 3)})
    block = GRAPHS[name].block_names[2]
    forecast = replace(schedule, forecasts={(2, block): (2.0, -1.0)})
    with pytest.raises(InputError, match=f"step 2 forecasts {block} from 2 feature.s., but {name} holds the last"):
        export_schedule(name, forecast)
    other = "residual" if schedule.kind == "output" else "output"
    with pytest.raises(
        InputError, match=f"step 2 reuses the {other} of {block}, but {name} reuses its {schedule.kind}"
    ):
        export_schedule(name, replace(schedule, kind=other))
    with pytest.raises(InputError, match="step 3 runs expert b"):
        export_schedule(name, replace(schedule, experts=("a", "a", "a", "b")))


def test_schedules_of_other_blocks_are_refused():
    graph = GRAPHS["dipgo"]
    with pytest.raises(
        InputError, match="has those of stage, such as transformer_blocks.0: search a schedule at layer"
    ):
        export_schedule("deepcache", full_schedule(SIX, "stage", "output", graph.block_names))
    with pytest.raises(UsageError, match="format 'abacus' is unknown"):
        export_schedule("abacus", full_schedule(SIX, "stage", "output", graph.block_names))
    odd = full_schedule(SIX, "layer", "output", ("down_blocks.99999999999.resnets.0", "prediction"))
    assert export_schedule("deepcache", odd)["cache_interval"] == 1


def test_a_table_of_steps_serves_a_sampler_that_calls_twice_at_one_timestep():
    plms = contract_of([1000, 800, 800, 600, 400, 200])
    document = {"compute": {name: "10010" for name in STAGES}}
    schedule = import_schedule("dipgo", document, GRAPHS["dipgo"], plms)
    assert [bool(row) for row in schedule.computed] == [1, 0, 0, 0, 1, 0]
