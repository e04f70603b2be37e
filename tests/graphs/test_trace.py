"""A trace is the model: outputs and features equal PyTorch's, and the weights file is the model's own."""

from __future__ import annotations

import json
import sys

import diffusers
import pytest
import torch
from torch import nn

from dipgo_deploy.core.blocks import fit_contract
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.files import load_block_graph
from dipgo_deploy.core.tensors import SizeRange
from dipgo_deploy.graphs import load_trace, trace
from dipgo_deploy.graphs.weights import read_layout
from dipgo_deploy.models import Preset, make_contract, model_from_module
from tests.graphs.onnx_text import open_session, run_session
from tests.graphs.surgery import EVERY_TRACE, deviation, example, record


@EVERY_TRACE
def test_the_master_graph_gives_what_pytorch_gives(name, granularity, reference_model, traced) -> None:
    model, made = reference_model(name), traced(name, granularity)
    session = open_session(made.master.read_bytes(), made.folder)
    for rows in (1, 3):
        inputs = example(model, rows)
        expected = record(model, made.blocks, inputs)
        outputs = run_session(session, {key: tensor.numpy() for key, tensor in inputs.items()})
        features = {feature for block in made.blocks.blocks for feature in block.features}
        assert features <= outputs.keys() <= expected.keys()
        assert [key for key in outputs if deviation(outputs[key], expected[key]) > 1e-5] == []
        for key in features:
            assert made.blocks.values[key].resolve({"rows": rows}) == outputs[key].shape


def test_the_graph_takes_more_rows_than_the_exporter_is_told_of(reference_model, traced) -> None:
    """From 64 rows on, diffusers' U-Nets take another branch, of the same values."""
    model, made = reference_model("digits-unet"), traced("digits-unet", "stage")
    session = open_session(made.master.read_bytes(), made.folder)
    for rows in (64, 130):
        inputs = example(model, rows)
        outputs = run_session(session, {key: tensor.numpy() for key, tensor in inputs.items()})
        assert deviation(outputs["prediction"], record(model, made.blocks, inputs)["prediction"]) < 1e-5


@EVERY_TRACE
def test_the_blocks_describe_the_model(name, granularity, reference_model, traced) -> None:
    model, made = reference_model(name), traced(name, granularity)
    blocks = made.blocks
    assert (blocks.model_class, blocks.model_digest) == (model.class_name, model.digest)
    assert [spec.name for spec in blocks.inputs] == list(model.example_inputs(1))
    assert blocks.granularity == granularity and blocks.block_names[-1] == blocks.prediction == "prediction"
    known = {spec.name for spec in blocks.inputs}
    for piece in blocks.pieces:
        assert {*piece.reads} <= known, f"piece {piece.index} reads what no earlier one gives"
        assert not {*piece.gives} & known
        known |= {*piece.gives}
    assert known == set(blocks.values) and set(blocks.block_of_feature) <= known
    assert load_block_graph(made.folder / "blocks.json") == blocks


@EVERY_TRACE
def test_diffusers_loads_the_weights_file_bit_for_bit(name, granularity, reference_model, traced) -> None:
    model, made = reference_model(name), traced(name, granularity)
    loaded = type(model.module).from_pretrained(made.folder, local_files_only=True, use_safetensors=True)
    assert isinstance(loaded, getattr(diffusers, model.class_name))
    state, restored = model.module.state_dict(), loaded.state_dict()
    assert restored.keys() == state.keys()
    assert all(torch.equal(restored[key], state[key]) and restored[key].dtype == state[key].dtype for key in state)
    own = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert sum(length for _, length in read_layout(made.weights).values()) <= 1.01 * own
    assert made.blocks.weight_bytes <= 1.01 * own


def test_a_trace_is_made_once(digits_unet, traced, monkeypatch) -> None:
    made = traced("digits-unet", "stage")
    module = sys.modules["dipgo_deploy.graphs.trace"]  # The package has a function of the same name.
    monkeypatch.setattr(module, "write_trace", lambda *_: pytest.fail("traced again"))
    assert trace(digits_unet, granularity="stage") == made


def test_a_damaged_trace_in_the_cache_is_made_again(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DIPGO_CACHE", str(tmp_path))
    made = trace(two_parts(), granularity="whole")
    blocks = (made.folder / "blocks.json").read_bytes()
    (made.folder / "blocks.json").write_text("{")
    stale = made.folder.with_name(f".{made.folder.name}.trace.dead")
    stale.mkdir()
    assert trace(two_parts(), granularity="whole").blocks == made.blocks
    assert (made.folder / "blocks.json").read_bytes() == blocks
    assert [path.name for path in made.folder.parent.iterdir()] == [made.folder.name]


class TwoParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 1, 1)

    def forward(self, sample, timestep, unused):
        return self.second(torch.tanh(self.first(sample))) * timestep[:, None, None, None]


def of_two_parts(module: nn.Module, shape: tuple[int, ...], rows: int, tokens: int) -> dict[str, torch.Tensor]:
    return {"sample": torch.randn(rows, 1, 4, 4), "timestep": torch.ones(rows), "unused": torch.ones(rows, 3)}


def two_parts():
    torch.manual_seed(0)
    preset = Preset({"whole": ("first",)}, of_two_parts, lambda module, **inputs: module(**inputs), lambda _: (1, 4, 4))
    return model_from_module(TwoParts(), preset=preset)


def test_a_module_of_the_user_has_the_granularities_of_its_preset(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DIPGO_CACHE", str(tmp_path / "cache"))
    model = two_parts()
    whole = trace(model, granularity="whole", out=tmp_path / "whole").blocks
    assert (whole.granularity, whole.block_names) == ("whole", ("first", "prediction"))
    assert whole.values["unused"].shape == ("rows", 3)
    own = trace(model, patterns=["first"]).blocks
    assert own.granularity == "first"
    # Export finds the blocks again by the granularity that the schedule recorded.
    assert trace(model, granularity=own.granularity).blocks == own
    assert [folder.name for folder in (tmp_path / "cache" / "traces").iterdir()] == [
        trace(model, patterns=["first"]).folder.name
    ]
    with pytest.raises(UsageError, match="TwoParts has no granularity 'stage': choose whole"):
        trace(model, granularity="stage")


class Positions(nn.Module):
    """Adds a table of seven rows to its text."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.table = nn.Conv2d(1, 1, 1), nn.Parameter(torch.randn(7, 3))

    def forward(self, sample, timestep, encoder_hidden_states):
        text = (encoder_hidden_states + self.table).mean((1, 2))
        return self.first(sample) * text[:, None, None, None]


def test_a_text_length_that_the_exporter_fixes_is_recorded_with_the_reason(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DIPGO_CACHE", str(tmp_path))
    torch.manual_seed(0)
    inputs = {"sample": (1, 4, 4), "timestep": (), "encoder_hidden_states": (7, 3)}
    preset = Preset(
        {"whole": ("first",)}, lambda *given: {name: torch.ones(given[2], *shape) for name, shape in inputs.items()},
        lambda module, **inputs: module(**inputs), lambda _: (1, 4, 4),
    )  # fmt: skip
    model = model_from_module(Positions(), preset=preset)
    assert model.sizes == {"tokens": SizeRange(1, 7, 1024)}
    blocks = trace(model, granularity="whole").blocks
    assert blocks.inputs[2].shape == ("rows", 7, 3) and blocks.sizes == {"tokens": SizeRange(7, 7, 7)}
    assert "tokens 7" in blocks.refused["tokens"] or "cannot be exported" in blocks.refused["tokens"]
    contract = fit_contract(make_contract(model, sampler="ddim", steps=2), blocks)
    with pytest.raises(UsageError, match="tokens is 8, but the contract takes 7: change tokens, or make a schedule"):
        contract.sizes(1, {"tokens": 8})
    monkeypatch.setattr(sys.modules["dipgo_deploy.graphs.trace"], "write_trace", lambda *_: pytest.fail("traced again"))
    assert trace(model, granularity="whole").blocks == blocks


def test_a_folder_that_holds_something_else_is_kept(tmp_path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists but is not a trace: choose another folder"):
        trace(two_parts(), granularity="whole", out=tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_unusable_patterns_are_refused(digits_unet) -> None:
    with pytest.raises(UsageError, match=r"pattern 'blocks.\*' matches no submodule of UNet2DConditionModel"):
        trace(digits_unet, patterns=["blocks.*"])
    with pytest.raises(UsageError, match="lies inside block mid_block: choose patterns that do not nest"):
        trace(digits_unet, patterns=["mid_block", "mid_block.resnets.*"])
    with pytest.raises(UsageError, match="no granularity 'pixel': choose stage or layer or branch"):
        trace(digits_unet, granularity="pixel")


def test_a_trace_with_a_part_missing_is_refused(traced, tmp_path) -> None:
    made = traced("digits-dit", "stage")
    for name in ("blocks.json", "master.onnx", made.weights.name):
        with pytest.raises(InputError, match=f"has no {name}: trace the model again"):
            load_trace(tmp_path)
        (tmp_path / name).symlink_to(made.folder / name)
    assert load_trace(tmp_path).blocks == made.blocks
    (tmp_path / "blocks.json").unlink()
    document = json.loads((made.folder / "blocks.json").read_text())
    (tmp_path / "blocks.json").write_text(json.dumps({**document, "pieces": 3}))
    with pytest.raises(InputError, match="blocks.json: pieces: .* fix the file"):
        load_trace(tmp_path)
