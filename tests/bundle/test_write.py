from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from dipgo_deploy.bundle import ExportOptions, export
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import load_manifest, load_program, load_schedule
from dipgo_deploy.graphs.weights import WEIGHTS_FILE, read_layout
from dipgo_deploy.models import make_contract
from dipgo_deploy.search.random_schedules import random_schedule


def schedule_for(model, traced, steps: int = 6, seed: int = 0, granularity: str = "layer"):
    graph = traced("digits-unet", granularity).blocks
    return random_schedule(graph, make_contract(model, steps=steps), "output", np.random.default_rng(seed), 0.5)


def test_bundle_is_a_diffusers_folder_with_the_models_own_weights(bundle_folder: Path, digits_unet) -> None:
    from diffusers import DDIMScheduler, UNet2DConditionModel

    loaded = UNet2DConditionModel.from_pretrained(bundle_folder, subfolder="unet", local_files_only=True)
    state = loaded.state_dict()
    assert state.keys() == digits_unet.module.state_dict().keys()
    for name, tensor in digits_unet.module.state_dict().items():
        assert torch.equal(state[name], tensor), name
    scheduler = DDIMScheduler.from_pretrained(bundle_folder, subfolder="scheduler")
    assert scheduler.config.beta_schedule == digits_unet.scheduler_config["beta_schedule"]


@pytest.mark.parametrize("layout", ["subnets", "segments"])
def test_weights_are_stored_once_whatever_the_number_of_graphs(digits_unet, traced, tmp_path: Path, layout) -> None:
    schedule = schedule_for(digits_unet, traced, steps=12)
    folder = export(digits_unet, schedule, tmp_path / "bundle", ExportOptions(layout))
    manifest = load_manifest(folder / "bundle.json")
    assert len(manifest.graphs) >= 8
    stored = sum(length for _, length in read_layout(folder / "unet" / WEIGHTS_FILE).values())
    for path in manifest.graphs.values():
        graph = onnx.load(folder / path, load_external_data=False).graph
        stored += sum(len(t.raw_data) for t in graph.initializer)
    assert stored <= 1.01 * manifest.model_weight_bytes
    if layout == "segments":
        program = load_program(folder / "program.json")
        assert sum(graph.weight_bytes for graph in program.graphs) <= 1.01 * manifest.model_weight_bytes
    for file in (p for p in folder.rglob("*") if p.is_file()):
        assert not file.is_symlink() and os.stat(file).st_nlink == 1


def test_limit_on_graphs_is_kept_and_the_schedule_file_says_so(digits_unet, traced, tmp_path: Path) -> None:
    schedule = schedule_for(digits_unet, traced, steps=12)
    folder = export(digits_unet, schedule, tmp_path / "bundle", ExportOptions(max_graphs=3))
    limited = load_schedule(folder / "schedule.json")
    assert len(load_program(folder / "program.json").graphs) <= 3
    assert all(ours >= theirs for ours, theirs in zip(limited.computed, schedule.computed, strict=True))
    assert limited.origin["max_graphs"] == "3"


def test_half_precision_is_typed(digits_unet, traced, tmp_path: Path) -> None:
    folder = export(digits_unet, schedule_for(digits_unet, traced), tmp_path / "half", ExportOptions(dtype="float16"))
    manifest = load_manifest(folder / "bundle.json")
    assert manifest.contract.dtype == "float16"
    assert manifest.model_weight_bytes == sum(p.numel() * 2 for p in digits_unet.module.parameters())
    graph = onnx.load(folder / manifest.graphs["subnet_00"], load_external_data=False).graph
    external = [t for t in graph.initializer if t.external_data and t.name.startswith("model.")]
    assert external and {t.data_type for t in external} == {onnx.TensorProto.FLOAT16}
    kinds = {i.name: i.type.tensor_type.elem_type for i in graph.input}
    assert kinds["sample"] == onnx.TensorProto.FLOAT16 and kinds["timestep"] == onnx.TensorProto.FLOAT
    assert next(iter(digits_unet.module.parameters())).dtype == torch.float32


def test_schedule_of_another_model_is_refused(digits_dit, digits_unet, traced, tmp_path: Path) -> None:
    schedule = schedule_for(digits_unet, traced)
    with pytest.raises(InputError, match="made for a UNet2DConditionModel .* this model is a DiT"):
        export(digits_dit, schedule, tmp_path / "bundle")
    foreign = replace(schedule, contract=replace(schedule.contract, model_digest="0" * 64))
    with pytest.raises(InputError, match="search a schedule for this model"):
        export(digits_unet, foreign, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_only_bundles_and_empty_folders_are_replaced(digits_unet, traced, tmp_path: Path) -> None:
    schedule = schedule_for(digits_unet, traced)
    target = tmp_path / "mine"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="exists but is not a bundle: choose another folder"):
        export(digits_unet, schedule, target)
    assert (target / "thesis.txt").read_text() == "years of work"
    (target / "thesis.txt").unlink()
    first = export(digits_unet, schedule, target)
    before = load_schedule(first / "schedule.json")
    export(digits_unet, schedule_for(digits_unet, traced, seed=1), target)
    assert load_schedule(target / "schedule.json").compute != before.compute
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_export_that_cannot_be_put_in_place_leaves_the_older_bundle(
    digits_unet, traced, tmp_path: Path, monkeypatch
) -> None:
    target = export(digits_unet, schedule_for(digits_unet, traced), tmp_path / "bundle")
    before = (target / "schedule.json").read_bytes()
    rename = Path.rename

    def fail_second(source: Path, to: Path) -> Path:
        if to == target and source.name != "bundle":
            raise OSError(28, "No space left on device")
        return rename(source, to)

    monkeypatch.setattr(Path, "rename", fail_second)
    with pytest.raises(OSError, match="No space left"):
        export(digits_unet, schedule_for(digits_unet, traced, seed=1), target)
    assert (target / "schedule.json").read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_a_model_whose_index_names_a_path_is_refused(digits_unet, traced, tmp_path: Path) -> None:
    from dipgo_deploy.models import load_model

    outside = tmp_path / "outside"
    outside.mkdir()
    folder = Path(shutil.copytree(digits_unet.folder, tmp_path / "model"))
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "../outside": ["diffusers", "Thing"]}))
    with pytest.raises(InputError, match="'../outside' is not a path inside"):
        export(load_model(folder), schedule_for(digits_unet, traced), tmp_path / "bundle")


def test_a_failing_export_leaves_nothing(digits_unet, traced, tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    # The package's verb has the module's name, so the module is found by its path.
    monkeypatch.setattr(sys.modules["dipgo_deploy.bundle.write"], "save_manifest", fail)
    with pytest.raises(KeyboardInterrupt):
        export(digits_unet, schedule_for(digits_unet, traced), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
