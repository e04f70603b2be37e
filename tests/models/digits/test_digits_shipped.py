"""The shipped models load with diffusers alone, have the promised sizes, and draw digits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)

from dipgo_deploy.models.class_embedder import ClassEmbedder
from dipgo_deploy.models.digits import SHIPPED, accuracy, load_classifier, load_split
from examples.digits.denoisers import load_denoiser
from examples.digits.evaluate import psnr
from examples.digits.sampling import cycle_labels, draw_noise, sample

REFERENCE = SHIPPED.parent
FOLDERS = ("digits-unet", "digits-dit")
OTHERS = (DPMSolverMultistepScheduler, UniPCMultistepScheduler, PNDMScheduler, EulerDiscreteScheduler)


def test_classifier_recognises_the_test_split() -> None:
    data = load_split("test")
    assert accuracy(load_classifier(), data.images, data.labels) >= 0.97


@pytest.mark.parametrize(
    ("part", "folder", "name"),
    [(UNet2DConditionModel, "digits-unet", "unet"), (DiTTransformer2DModel, "digits-dit", "transformer")],
)
def test_model_loads_with_plain_diffusers(part: type, folder: str, name: str) -> None:
    model = part.from_pretrained(REFERENCE / folder, subfolder=name)
    assert 1_000_000 <= sum(p.numel() for p in model.parameters()) <= 1_500_000
    assert model.dtype is torch.float32
    index = json.loads((REFERENCE / folder / "model_index.json").read_text())
    assert index[name] == ["diffusers", part.__name__] and index["scheduler"] == [
        "diffusers",
        "DDIMScheduler",
    ]


def test_folders_are_small_and_hold_no_pickles() -> None:
    files = [p for folder in FOLDERS for p in (REFERENCE / folder).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) <= 12_000_000
    assert {p.suffix for p in files} == {".json", ".safetensors", ".md", ".png"}


@pytest.mark.parametrize("folder", FOLDERS)
def test_schedule_keeps_every_sampler_linear(folder: str) -> None:
    config = DDIMScheduler.from_pretrained(REFERENCE / folder, subfolder="scheduler").config
    assert config.prediction_type == "epsilon" and "linear" in config.beta_schedule
    assert not config.clip_sample and not config.thresholding


@pytest.mark.parametrize("folder", FOLDERS)
def test_samples_show_their_class(folder: str) -> None:
    denoiser, scheduler = load_denoiser(REFERENCE / folder)
    labels = cycle_labels(40)
    images = sample(denoiser, scheduler, draw_noise(40, seed=3), labels, steps=20, guidance=2.0)
    assert accuracy(load_classifier(), images.clamp(-1, 1), labels) >= 0.9


@pytest.fixture(scope="module")
def converged() -> torch.Tensor:
    denoiser, scheduler = load_denoiser(REFERENCE / "digits-unet")
    return sample(denoiser, scheduler, draw_noise(4, seed=5), cycle_labels(4), steps=100)


@pytest.mark.parametrize("sampler", OTHERS, ids=lambda c: c.__name__)
def test_other_samplers_agree_with_ddim(sampler: type, converged: torch.Tensor) -> None:
    denoiser, scheduler = load_denoiser(REFERENCE / "digits-unet")
    other = sampler.from_config(scheduler.config)
    other.set_timesteps(25)
    images = draw_noise(4, seed=5) * other.init_noise_sigma
    with torch.no_grad():
        for timestep in other.timesteps:
            inputs = other.scale_model_input(images, timestep)
            images = other.step(denoiser(inputs, timestep.expand(4), cycle_labels(4)), timestep, images).prev_sample
    assert psnr(images, converged).median() >= 25


def test_class_embedder_round_trips(tmp_path: Path) -> None:
    embedder = ClassEmbedder(num_classes=3, tokens=2, dim=5)
    embedder.save_pretrained(tmp_path)
    loaded = ClassEmbedder.from_pretrained(tmp_path)
    labels = torch.tensor([0, loaded.null_label])
    assert loaded(labels).shape == (2, 2, 5)
    assert torch.equal(loaded(labels), embedder(labels))
