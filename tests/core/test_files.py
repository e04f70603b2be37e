"""Every document survives the round trip, and a damaged one is refused in one line."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from dipgo_deploy.core import disk, files
from dipgo_deploy.core.bundle import BundleManifest, FileRecord
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.lowering import LowerOptions, lower
from tests.lowering.cases import Case, cases, contract, made_up_sampler, random_graph

GRAPH = random_graph(3, 4)
SCHEDULE = full_schedule(contract(GRAPH, 3, "concat"), "stage", "output", GRAPH.block_names)
PROGRAM = lower(SCHEDULE, GRAPH, made_up_sampler(3, (2, 2), np.random.default_rng(0)))
RECORD = FileRecord("unet/config.json", 3, "ab" * 32)
MANIFEST = BundleManifest(SCHEDULE.contract, "unet", (RECORD,), {"g": "unet/g.onnx"}, {"main": "w"}, 12, {"torch": "2"})

DOCUMENTS = {
    "blocks": (GRAPH, files.save_block_graph, files.load_block_graph),
    "schedule": (SCHEDULE, files.save_schedule, files.load_schedule),
    "program": (PROGRAM, files.save_program, files.load_program),
    "bundle": (MANIFEST, files.save_manifest, files.load_manifest),
}


@pytest.fixture(params=DOCUMENTS)
def saved(request, tmp_path):
    """``(path, value, load)`` of a document on disk."""
    value, save, load = DOCUMENTS[request.param]
    path = tmp_path / "sub" / f"{request.param}.json"
    save(path, value)
    return path, value, load


def edited(path, change):
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("config", ["", "no json", "[]", "null", '{"beta": NaN}'])
@pytest.mark.parametrize("name", ["schedule", "program", "bundle"])
def test_a_sampler_whose_config_is_no_json_object_is_refused(name, config, tmp_path):
    value, save, load = DOCUMENTS[name]
    path = tmp_path / f"{name}.json"
    save(path, value)
    edited(path, lambda document: document["contract"]["sampler"].update(config=config))
    with pytest.raises(InputError, match="contract.sampler: config must be a JSON object as text .*: fix the file"):
        load(path)


def test_what_is_loaded_equals_what_was_saved(saved):
    path, value, load = saved
    assert load(path) == value
    assert files.format_of(path) == path.stem
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@settings(max_examples=60, deadline=None)
@given(cases())
def test_schedules_and_programs_of_all_kinds_survive(tmp_path_factory, case: Case):
    folder = tmp_path_factory.mktemp("documents")
    files.save_schedule(folder / "schedule.json", case.schedule)
    assert files.load_schedule(folder / "schedule.json") == case.schedule
    for layout in ("subnets", "segments"):
        program = lower(case.schedule, case.graph, case.sampler, LowerOptions(layout))
        files.save_program(folder / "program.json", program)
        assert files.load_program(folder / "program.json") == program


def test_truncated_documents_are_refused(saved):
    path, _, load = saved
    text = path.read_text()
    for length in (0, 1, len(text) // 2, len(text) - 2):
        path.write_text(text[:length])
        with pytest.raises(InputError, match="is not valid JSON .*: write the file again"):
            load(path)


def test_a_newer_major_version_is_refused_and_a_newer_minor_is_read(saved):
    path, value, load = saved
    edited(path, lambda d: d.update(format_version="1.7"))
    assert load(path) == value
    edited(path, lambda d: d.update(format_version="2.0"))
    with pytest.raises(InputError, match=r"has format version 2.0, this program reads 1.1: update the program"):
        load(path)
    edited(path, lambda d: d.pop("format_version"))
    with pytest.raises(InputError, match="has format version 0"):
        load(path)


OLD = Path(__file__).parent.parent / "data" / "formats-1.0"
"""Documents as the program wrote them before format version 1.1."""

LOADERS = {
    "blocks": files.load_block_graph,
    "schedule": files.load_schedule,
    "program": files.load_program,
    "bundle": files.load_manifest,
    "latency": files.load_latency_table,
    "engine": files.load_engine_record,
}


@pytest.mark.parametrize("name", LOADERS)
def test_documents_of_version_1_0_still_load(name):
    path = OLD / f"{name}.json"
    document = json.loads(path.read_text())
    assert document["format_version"] == "1.0"
    value = LOADERS[name](path)
    if name == "program":
        assert "share_graphs" not in document and not value.share_graphs
    if name == "blocks":
        assert {block["ms"] for block in document["blocks"]} == {None}


def test_old_documents_fit_each_other_and_lower_to_the_same_program():
    graph, schedule = files.load_block_graph(OLD / "blocks.json"), files.load_schedule(OLD / "schedule.json")
    program = files.load_program(OLD / "program.json")
    assert schedule.forecasts == {(1, "mid_block"): (0.5,)} and schedule.contract == program.contract
    sampler = made_up_sampler(3, (2, 2), np.random.default_rng(0))
    assert lower(schedule, graph, sampler) == program


def test_unknown_and_missing_fields_are_named(saved):
    path, _, load = saved
    field = {"blocks": "patterns", "schedule": "compute", "program": "calls", "bundle": "files"}[path.stem]
    edited(path, lambda d: d.update(colour="red"))
    with pytest.raises(InputError, match=r"colour: Unexpected keyword argument \(1 errors\): fix the file"):
        load(path)
    edited(path, lambda d: (d.pop("colour"), d.pop(field)))
    with pytest.raises(InputError, match=f"{field}: .* fix the file"):
        load(path)


def test_another_format_is_refused(saved):
    path, _, load = saved
    edited(path, lambda d: d.update(format="picture"))
    with pytest.raises(InputError, match=f"has format 'picture', expected '{path.stem}': name a {path.stem} file"):
        load(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("kind", ["schedule", "program"])
def test_numbers_must_be_finite(tmp_path, kind, number):
    value, save, load = DOCUMENTS[kind]
    path = tmp_path / "x.json"
    save(path, value)
    text = path.read_text()
    assert "97.0" in text
    path.write_text(text.replace("97.0", number, 1))
    with pytest.raises(InputError, match=r"x\.json.*: (fix the file|write the file again)"):
        load(path)


def test_numbers_that_are_not_finite_are_never_written(tmp_path):
    sampler = replace(SCHEDULE.contract.sampler, timesteps=(math.nan, 1.0, 0.0))
    broken = replace(SCHEDULE, contract=replace(SCHEDULE.contract, sampler=sampler))
    with pytest.raises(ValueError):
        files.save_schedule(tmp_path / "s.json", broken)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "holds a JSON list, expected an object"),
        (b"\xff\xfe{}", "is not text, expected a JSON file"),
        (b"[" * 100_000, "is not valid JSON"),
    ],
)
def test_files_that_hold_no_document(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        files.load_program(path)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match="does not exist: check the path"):
        files.load_schedule(tmp_path / "none.json")
    with pytest.raises(InputError, match="is a folder, expected a JSON file"):
        files.load_schedule(tmp_path)


@pytest.mark.parametrize(
    ("bits", "message"),
    [("11", "found 2 characters '1'"), ("1x1", "found 3 characters '1x'")],
)
def test_rows_of_a_schedule_are_checked(tmp_path, bits, message):
    path = tmp_path / "s.json"
    files.save_schedule(path, SCHEDULE)
    edited(path, lambda d: d["compute"].update({GRAPH.block_names[0]: bits}))
    with pytest.raises(InputError, match=f"compute.block.0 must be 3 characters 0 or 1 .* {message}"):
        files.load_schedule(path)


def test_a_schedule_without_blocks_is_refused(tmp_path):
    path = tmp_path / "s.json"
    files.save_schedule(path, SCHEDULE)
    edited(path, lambda d: d.update(compute={}))
    with pytest.raises(InputError, match="the schedule has no block 'prediction': add that block"):
        files.load_schedule(path)


def test_the_keys_of_a_schedule_may_be_sorted(tmp_path):
    path = tmp_path / "s.json"
    files.save_schedule(path, SCHEDULE)
    edited(path, lambda d: d.update(compute=dict(sorted(d["compute"].items(), key=lambda i: i[0] != "prediction"))))
    assert files.load_schedule(path) == SCHEDULE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["sampler"].update(steps=0), "contract.sampler.steps is below 1"),
        (lambda c: c["sampler"].update(timesteps=[]), "contract.sampler.timesteps is empty"),
        (lambda c: c.update(latent_shape=[0, 4, 4]), "contract.latent_shape holds no sizes above 0"),
        (lambda c: c.update(batch={"min": 4, "opt": 1, "max": 2}), "contract.batch is not in the order min, opt, max"),
    ],
)
def test_a_contract_that_cannot_be_used_is_refused(tmp_path, change, message):
    path = tmp_path / "s.json"
    files.save_schedule(path, SCHEDULE)
    edited(path, lambda d: change(d["contract"]))
    with pytest.raises(InputError, match=message):
        files.load_schedule(path)


@pytest.mark.parametrize("relative", ["/etc/passwd", "../x", "a/../../x", "a\\b", "", "."])
def test_paths_stay_inside_their_folder(tmp_path, relative):
    with pytest.raises(InputError, match="is not a path inside"):
        disk.path_inside(tmp_path, relative)
    manifests = [replace(MANIFEST, files=(replace(RECORD, path=relative),)), replace(MANIFEST, graphs={"g": relative})]
    for manifest in [*manifests, replace(MANIFEST, weights={"main": relative}), replace(MANIFEST, denoiser=relative)]:
        files.save_manifest(tmp_path / "bundle.json", manifest)
        with pytest.raises(InputError, match="is not a path inside"):
            files.load_manifest(tmp_path / "bundle.json")


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", ".hidden", "", "a b", "..", "a\\b", "x\n"])
def test_a_graph_is_named_as_a_plain_file(tmp_path, name):
    path = tmp_path / "program.json"
    files.save_program(path, replace(PROGRAM, graphs=(replace(PROGRAM.graphs[0], name=name), *PROGRAM.graphs[1:])))
    with pytest.raises(InputError, match="which is not a plain file name"):
        files.load_program(path)
