"""Each view states the key facts, within the width of a terminal."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType

from dipgo_deploy.cli.bundle_view import blocks_view, bundle_view
from dipgo_deploy.cli.program_view import program_view
from dipgo_deploy.cli.schedule_view import schedule_view
from dipgo_deploy.core.bundle import BundleManifest, FileRecord
from dipgo_deploy.core.program import Layout, Program, memory_bytes
from dipgo_deploy.core.sampler import LinearSampler, Update
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.core.tensors import SizeRange
from dipgo_deploy.lowering import LowerOptions, lower
from dipgo_deploy.search import DeepCacheOptions, SearchOptions, method_options, schedule_by_rule
from tests.search.graphs import chain_like, contract_of, unet_like

GRAPH = unet_like()
X = "\N{MULTIPLICATION SIGN}"


def render(view: RenderableType, width: int = 80) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(view)
    return console.export_text()


def schedule_of(method: str, ratio: float, steps: int, interval: int | None = None) -> Schedule:
    settings = method_options(method, interval=interval)
    return schedule_by_rule(GRAPH, contract_of(GRAPH, steps), SearchOptions(method, ratio, settings=settings))


def program_of(schedule: Schedule, layout: Layout = "subnets") -> Program:
    sampler = LinearSampler(2.0, (1.0,) * schedule.steps, (Update((0.9,), (0.1,)),) * schedule.steps)
    return lower(schedule, GRAPH, sampler, LowerOptions(layout=layout))


def test_schedule_view_marks_every_cell() -> None:
    schedule = schedule_of("deepcache", 0.2, 6, interval=3)
    lines = render(schedule_view(schedule, GRAPH)).splitlines()
    rows = {line.split()[0]: line.split()[1] for line in lines[3:] if len(line.split()) == 2}
    assert lines[0].startswith("deepcache, pruned ratio 0.") and "6 network calls" in lines[1]
    assert rows["down.0"] == rows["prediction"] == "██████" and rows["mid"] == "█▒░█▒░"
    assert rows["MACs"][0] == rows["MACs"][3] == "█" and "MACs" in rows
    assert "█ computed  ▒ reused, 1 step old  ░ older" in lines[-1] and "forecast" not in lines[-1]


def test_views_state_what_is_fixed() -> None:
    schedule = schedule_of("deepcache", 0.2, 6, interval=3)
    line = (
        "fixed: latent " + X.join(map(str, schedule.contract.latent_shape)) + ", guidance layout none; 1 to 64 images"
    )
    assert line in render(schedule_view(schedule)).splitlines()
    assert line in render(program_view(program_of(schedule))).splitlines()
    spec = GRAPH.inputs[0]
    assert f"inputs: {spec.name} {X.join(map(str, spec.shape))}" in render(blocks_view(GRAPH))
    assert "all but rows is fixed" in " ".join(render(blocks_view(GRAPH)).split())


def test_views_state_the_range_of_a_text_and_why_it_has_none() -> None:
    free = replace(GRAPH, sizes={"tokens": SizeRange(1, 77, 1024)})
    assert "all but rows and tokens (1 to 1024, counted at 77) is fixed" in " ".join(render(blocks_view(free)).split())
    fixed = replace(GRAPH, sizes={"tokens": SizeRange(7, 7, 7)}, refused={"tokens": "it has a table"})
    text = " ".join(render(blocks_view(fixed)).split())
    assert "all but rows is fixed; tokens is fixed at 7, because it has a table" in text
    schedule = schedule_of("deepcache", 0.2, 6, interval=3)
    contract = replace(schedule.contract, tokens=SizeRange(1, 77, 1024))
    assert "1 to 64 images, 1 to 1024 tokens" in render(schedule_view(replace(schedule, contract=contract)))


def test_schedule_view_marks_forecasts_and_what_is_computed_in_vain() -> None:
    graph = chain_like()
    options = SearchOptions("deepcache", 0.5, settings=DeepCacheOptions(2, 1))
    schedule = schedule_by_rule(graph, contract_of(graph, 4), options)
    schedule = replace(schedule, forecasts={(3, "transformer_blocks.4"): (1.5, -0.5)})
    text = render(schedule_view(schedule, graph))
    assert "transformer.0 █x█x" in text and "transformer.4 █▒█~" in text
    assert "~ forecast  x computed but never read\n" in text
    assert "transformer.0 ████" in render(schedule_view(schedule)) and "kept" in render(schedule_view(schedule))


@pytest.mark.parametrize(("steps", "chunks"), [(20, 1), (60, 1), (61, 2), (250, 5)])
def test_schedule_view_wraps_long_runs_to_80_columns(steps: int, chunks: int) -> None:
    lines = render(schedule_view(schedule_of("random", 0.5, steps), GRAPH), width=200).splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    rows = [line.split()[1] for line in lines if line.startswith("mid ")]
    assert len(rows) == chunks and sum(map(len, rows)) == steps


def test_program_view_lists_runs_and_folded_stretches() -> None:
    program = program_of(schedule_of("uniform", 0.7, 20))
    text = render(program_view(program))
    assert "layout subnets: 6 of 20 steps call the network" in text
    assert "1-2  reuse the prediction: 1 combination" in text and "17-19  reuse the prediction: 1 combination" in text
    assert "MACs per image (papers): 27.70 k of 92.34 k" in text and "full: 30.47 k of 101.56 k" in text
    graph_line = next(line for line in text.splitlines() if line.startswith("subnet_00") and "KiB" in line)
    assert graph_line.split() == ["subnet_00", "10", "4.62", "k", "5.08", "k", "18.0", "KiB", "6"]
    for batch in (1, 8):
        assert f"batch {batch}: slots {memory_bytes(program, batch)['slots'] / 1024:.1f} KiB" in text
    assert f"{len(program.slots)} slots" in text


def test_program_view_joins_equal_steps_and_names_what_is_carried_over() -> None:
    text = render(program_view(program_of(schedule_of("deepcache", 0.2, 10, interval=4))), width=120)
    rows = [line.split() for line in text.splitlines()]
    assert ["0", "subnet_00,", "1", "combination", "-", "prediction,", "up_blocks.1:0"] in rows
    assert ["1-3", "subnet_01,", "1", "combination", "up_blocks.1:0", "prediction"] in rows


def test_program_view_of_segments_lists_the_graphs_of_a_step() -> None:
    text = render(program_view(program_of(schedule_of("deepcache", 0.2, 10, interval=4), "segments")), width=120)
    line = next(line for line in text.splitlines() if line.strip().startswith("1-3 "))
    assert "segment_00, segment_02" in line and "up_blocks.1:0" in line and "down_blocks" not in line


def test_blocks_view_shows_costs_shapes_and_what_lies_outside() -> None:
    text = render(blocks_view(GRAPH), width=120)
    line = next(line for line in text.splitlines() if line.startswith("up_blocks.3"))
    assert line.split()[1:] == ["1.60", "k", "1.76", "k", "34.7", "6.2", "KiB", "1.0", "KiB", f"rows{X}4{X}8{X}8"]
    outside = next(line for line in text.splitlines() if line.startswith("outside every block"))
    assert outside.split()[3:6] == ["67", "73", "1.5"]
    assert "10 blocks at granularity stage" in text and "warning" not in text


def test_blocks_view_warns_above_five_percent_outside() -> None:
    text = render(blocks_view(chain_like(2)), width=120)
    assert "warning: 7.7% of the MACs lie outside every block" in text


def test_bundle_view_shows_contract_files_and_memory(tmp_path: Path) -> None:
    schedule = schedule_of("uniform", 0.7, 20)
    files = (FileRecord("unet/weights.safetensors", 3 * 2**20, "ab" * 32), FileRecord("schedule.json", 812, "cd" * 32))
    manifest = BundleManifest(
        schedule.contract, "unet", files, {"subnet_00": "unet/subnet_00.onnx"}, {}, 3 * 2**20, {"torch": "2.13"}
    )
    text = render(bundle_view(manifest, tmp_path, program_of(schedule)), width=160)
    assert f"bundle {tmp_path}" in text and "UNet2DConditionModel dddddddddddd, float32" in text
    assert "DDIMScheduler, 20 steps, 20 calls" in text and f"4{X}8{X}8" in text and "1 to 64, best at 4" in text
    assert [line.split() for line in text.splitlines() if "safetensors" in line] == [
        ["unet/weights.safetensors", "3.0", "MiB", "abababababab"]
    ]
    assert "2 files, 3.0 MiB; 1 graph; the model's weights are 3.0 MiB" in text
    assert "batch 8: slots 24.0 KiB" in text and "made with torch 2.13" in text
    assert "slots" not in render(bundle_view(manifest))
