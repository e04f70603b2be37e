"""Where ``generate`` writes: grids with labels, single files, latents. Every wrong name is refused before loading."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dipgo_deploy.bench.image_files import read_note
from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.cli.image_output import Drawn, image_output
from dipgo_deploy.cli.main import run
from dipgo_deploy.runtime import GenerateOptions, generate
from tests.cli.refusal import refused

TWO = ["--class", "7", "--class", "3", "--count", "2", "--seed", "5"]


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (
            "x.gif",
            "--out x.gif ends in none of .png, .jpg, .jpeg, .npy: name a picture, an array of latents, or a folder",
        ),
        ("plain", "--out plain ends in none of"),
        ("{class}.png", "gives several images one name: add {index}, {seed} or {name}"),
        ("{kind}-{seed}.png", "has the field {kind}: use {index}, {seed}, {class}, {prompt}, {name}"),
        ("{seed.real}.png", "has the field {seed.real}: use"),
        ("{}.png", "has the field {}: use"),
        ("{seed:q}.png", "is no pattern (Unknown format code 'q'"),
        ("{seed.png", "is no pattern (expected '}' before end of string)"),
        ("{prompt}-{seed}.png", "has the field {prompt}, but no prompt is drawn"),
    ],
)
def test_wrong_names_are_refused_before_a_bundle_is_looked_at(out, words, capsys) -> None:
    refused(["generate", "no-such-bundle", "--out", out], words, capsys, 2)


def test_a_prompt_has_no_class(capsys) -> None:
    words = "has the field {class}, but no class is drawn: use {index} or {seed}"
    refused(["generate", "nowhere", "--prompt", "a cat", "--out", "{class}-{seed}.png"], words, capsys, 2)


def test_names_and_labels_say_what_an_image_shows() -> None:
    by_class, prompts = Drawn([5, 6], [7, 3]), Drawn([5, 6], [0, 1], ("a  cat", "dogs\nand mice"))
    assert by_class.label(1) == "class 3\nseed 6" and prompts.label(1) == "dogs and mice\nseed 6"
    assert Drawn([5], [None]).label(0) == "seed 5" and prompts.note(0) == {"seed": 5, "prompt": "a  cat"}
    names = [path.name for path in image_output("new/", by_prompt=True).paths(prompts)]
    assert names == ["prompt-0-seed-5.png", "prompt-1-seed-6.png"]
    paths = image_output("a/{class:02d}/{index:03d}.jpg", by_prompt=False).paths(by_class)
    assert paths == [Path("a/07/000.jpg"), Path("a/03/001.jpg")]


def test_a_grid_is_labelled_and_records_its_seeds(bundle_folder: Path, tmp_path: Path, capsys) -> None:
    for name in ("grid.png", "grid.jpg"):
        assert run(["generate", str(bundle_folder), *TWO, "--out", str(tmp_path / name), "--json"]) == 0
        document = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert (document["images"], document["seeds"]) == (4, [5, 6, 7, 8])
        with Image.open(tmp_path / name) as picture:
            pixels = np.asarray(picture.convert("L"))
        bands = pixels[6 + 96 + 2 : 6 + 96 + 26]  # below the first row of images of 16×16 pixels, enlarged by 6
        assert bands.min() < 100 < 200 < np.median(bands)
        notes = read_note(tmp_path / name)["images"]
        assert notes[0] == {"seed": 5, "class": 7} and notes[3] == {"seed": 8, "class": 3}


def test_single_files_and_latents_hold_the_same_images(bundle_folder: Path, tmp_path: Path, capsys) -> None:
    command = ["generate", str(bundle_folder), *TWO, "--out"]
    assert run([*command, f"{tmp_path}/new/"]) == 0
    assert f"4 images in {tmp_path}/new/" in capsys.readouterr().out
    assert run([*command, str(tmp_path / "latents.npy")]) == 0
    assert "latents of 4 images" in capsys.readouterr().out
    names = ["class-7-seed-5.png", "class-7-seed-6.png", "class-3-seed-7.png", "class-3-seed-8.png"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(names)
    images = generate(load_bundle(bundle_folder), GenerateOptions(5, (7, 3), 2))
    assert np.array_equal(np.load(tmp_path / "latents.npy"), images)
    for name, image in zip(names, images, strict=True):
        with Image.open(tmp_path / "new" / name) as picture:
            pixels = np.asarray(picture.convert("L"), dtype=np.float64)
        assert np.abs(pixels - np.clip(image[0] / 2 + 0.5, 0, 1) * 255).max() <= 0.5 + 1e-3
    assert read_note(tmp_path / "new" / names[2]) == {"seed": 7, "class": 3}


def test_latents_of_a_prompt_are_those_of_the_pipeline(sd_bundle: Path, tmp_path: Path, capsys) -> None:
    import torch

    from dipgo_deploy import load_pipeline

    out = str(tmp_path / "{prompt}-{seed}.npy")
    assert run(["generate", str(sd_bundle), "--prompt", "a cat", "--seed", "3", "--out", out]) == 0
    pipeline = load_pipeline(sd_bundle)
    generator = torch.Generator().manual_seed(3)
    steps = load_bundle(sd_bundle).contract.sampler.steps
    call = {"num_inference_steps": steps, "generator": generator, "output_type": "latent"}
    expected = pipeline("a cat", **call).images[0].numpy()
    assert np.abs(np.load(tmp_path / "0-3.npy") - expected).max() <= 1e-4 * np.abs(expected).max()
