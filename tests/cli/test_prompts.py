"""Prompts and LoRA files on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from dipgo_deploy.cli.main import run
from tests.cli.refusal import refused
from tests.pipeline.pipelines import SIDE


def test_generate_draws_prompts_and_says_where_the_time_went(sd_bundle: Path, tmp_path: Path, capsys):
    out = tmp_path / "cats.png"
    command = ["generate", str(sd_bundle), "--prompt", "a cat", "--prompt", "dogs", "--negative-prompt", "rain"]
    assert run([*command, "--count", "2", "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["images"] == 4 and found["out"] == str(out)
    assert list(found["seconds"]) == ["text_encoder", "denoiser", "vae", "rest", "total"]
    with Image.open(out) as picture:
        assert min(picture.size) > 2 * SIDE
    assert run(["generate", str(sd_bundle), "--prompt", "a cat", "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"1 image in {out}" and lines[1].startswith("text encoder 0.") and "denoiser" in lines[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", "a cat", "--class", 1], "--class and --prompt both say what to draw"),
        (["--negative-prompt", "rain"], "--negative-prompt needs --prompt"),
    ],
)
def test_options_that_do_not_go_together(options, words, bundle_folder: Path, tmp_path: Path, capsys):
    refused(["generate", bundle_folder, "--out", tmp_path / "g.png", *options], words, capsys, 2)


@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        (["--backend", "torch", "--compile"], "--compile is for runs without --prompt", 2),
        (["--device", "cuda", "--cuda-graph"], "--cuda-graph is for runs without --prompt", 2),
        (["--model", "own:model"], "--model is for models without a pipeline, --prompt for models with a pipeline", 2),
        (["--backend", "rtx"], "target rtx runs only on an NVIDIA GPU", 5),
    ],
)
def test_a_pipelines_own_loop_has_no_place_for_some_options(
    options, words, code, sd_bundle: Path, tmp_path: Path, capsys, monkeypatch
):
    monkeypatch.setenv("DIPGO_CUDA_DRIVER", "libno-such-driver.so")
    refused(["generate", sd_bundle, "--prompt", "a cat", "--out", tmp_path / "g.png", *options], words, capsys, code)


def test_a_bundle_without_a_pipeline_draws_no_prompts(bundle_folder: Path, tmp_path: Path, capsys):
    command = ["generate", bundle_folder, "--out", tmp_path / "g.png", "--prompt", "a cat"]
    refused(command, "holds a denoiser without a pipeline", capsys, 3)


def test_latents_are_no_pictures_and_none_are_drawn(sd_bundle: Path, tmp_path: Path, capsys):
    words = "latents of shape 4\N{MULTIPLICATION SIGN}8\N{MULTIPLICATION SIGN}8, which a pipeline has to decode"
    refused(["generate", sd_bundle, "--out", tmp_path / "g.png"], words, capsys, 2)


@pytest.mark.parametrize("command", ["trace", "search", "export"])
def test_a_lora_of_another_format_or_model_is_refused(command: str, bundle_folder: Path, tmp_path: Path, capsys):
    options = ["--schedule", bundle_folder / "schedule.json"] if command == "export" else []
    out = ["--out", tmp_path / "new" / "out"]
    refused(
        [command, "digits-dit", *options, *out, "--lora", "style.pt"], "style.pt is not a .safetensors file", capsys, 2
    )
    save_file({}, tmp_path / "style.safetensors")
    lora = ["--lora", f"{tmp_path / 'style.safetensors'}:0.5"]
    words = "a LoRA for DiTTransformer2DModel cannot be read"
    refused([command, "digits-dit", *options, *out, *lora], words, capsys, 2)
