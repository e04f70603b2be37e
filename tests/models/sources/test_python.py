from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dipgo_deploy.cli import main
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import load_block_graph, load_program
from dipgo_deploy.models import load_model
from dipgo_deploy.models.sources.python import with_weights
from tests.cli.refusal import refused

OWN_MODEL = """
import torch
from torch import nn

from dipgo_deploy.models import Preset, model_from_module


class Chain(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))

    def forward(self, sample, timestep):
        for block in self.blocks:
            sample = sample + torch.tanh(block(sample)) * timestep.view(-1, 1, 1, 1) / 1000
        return sample * 0.5


def example(module, shape, rows, tokens):
    return {"sample": torch.randn(rows, 2, 8, 8), "timestep": torch.full((rows,), 500.0)}


def chain():
    preset = Preset({}, example, lambda module, sample, timestep: module(sample, timestep), lambda config: (2, 8, 8))
    return model_from_module(Chain(), preset=preset, scheduler_config={"clip_sample": False})


def wide():
    model = chain()
    model.module.blocks.append(nn.Conv2d(2, 2, 3, padding=1))
    return model


def boom():
    raise ValueError("weights not found")


number = 3
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_denoiser.py").write_text(OWN_MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_users_module_goes_from_trace_to_bundle(own_module: Path) -> None:
    model = ["own_denoiser:chain"]
    blocks = ["--blocks", "blocks.*"]
    assert main.run(["trace", *model, *blocks, "--out", "traced"]) == 0
    assert load_block_graph(own_module / "traced" / "blocks.json").block_names == (
        *("blocks.0", "blocks.1", "blocks.2"),
        "prediction",
    )
    wanted = ["--method", "fora", "--ratio", "0.5", "--steps", "6", "--kind", "residual"]
    assert main.run(["search", *model, *blocks, *wanted, "--out", "schedule.json"]) == 0
    assert main.run(["export", *model, "--schedule", "schedule.json", "--out", "bundle"]) == 0
    assert load_program(own_module / "bundle" / "program.json").nfe == 6
    own = ["--model", *model]
    assert main.run(["verify", "bundle", *own]) == 0
    assert main.run(["verify", "bundle", "--once", *own]) == 0
    few = ["--repeats", "2", "--images", "2", "--converged-images", "0", "--tuning-images", "1"]
    assert main.run(["bench", "bundle", *few, *own]) == 0


def test_a_bundle_of_a_users_module_needs_the_module(own_module: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schedule = ["--method", "uniform", "--ratio", "0.5", "--steps", "4", "--out", "schedule.json"]
    assert main.run(["search", "own_denoiser:chain", "--blocks", "blocks.*", *schedule]) == 0
    assert main.run(["export", "own_denoiser:chain", "--schedule", "schedule.json", "--out", "bundle"]) == 0
    bundle = str(own_module / "bundle")
    capsys.readouterr()
    refused(["verify", bundle], "for which no preset ships: pass the exported model as", capsys, 3)
    refused(["verify", bundle, "--model", "chain"], "--model 'chain' is not the name of a Python object", capsys, 2)
    refused(
        ["verify", bundle, "--model", "own_denoiser:wide"], 'Missing key(s) in state_dict: "blocks.3.weight', capsys
    )
    wide = ["--model", "own_denoiser:wide", "--target", "rtx", "--gpu", "sm89", "--dry-run"]
    refused(["build-engine", bundle, *wide], "is not the model that", capsys)
    words = "which a pipeline has to decode: name an array of latents"
    refused(["generate", bundle, "--model", "own_denoiser:chain"], words, capsys, 2)


def test_weights_of_the_file_take_the_place_of_others(own_module: Path, tmp_path: Path) -> None:
    traced, other = load_model("own_denoiser:chain"), load_model("own_denoiser:chain")
    file = tmp_path / "weights.safetensors"
    save_file({**traced.module.state_dict(), "a constant of the graph": torch.ones(3)}, file)
    assert with_weights(other, file, traced.digest) is other
    other.module.blocks[0].weight.zero_()
    restored = with_weights(other, file, traced.digest)
    assert restored.digest == traced.digest and not other.module.blocks[0].weight.any()
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\xff" * 100)
    with pytest.raises(InputError, match="damaged.safetensors cannot be read .*: export the bundle again"):
        with_weights(other, damaged, traced.digest)
    with pytest.raises(InputError, match="Chain is not the model that .* was traced from: give the class"):
        with_weights(other, file, "0" * 64)


def test_python_names_without_a_model(own_module: Path) -> None:
    with pytest.raises(InputError, match="own_denoiser:number gives int instead of a LoadedModel"):
        load_model("own_denoiser:number")
    with pytest.raises(InputError, match=r"own_denoiser:boom makes no model \(weights not found\): fix it"):
        load_model("own_denoiser:boom")
    with pytest.raises(InputError, match="own_denoiser:missing cannot be imported"):
        load_model("own_denoiser:missing")
    with pytest.raises(InputError, match="no_such_module:chain cannot be imported"):
        load_model("no_such_module:chain")
