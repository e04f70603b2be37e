"""The evaluation of the digits models: its measures, and samples of the shipped models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler, UniPCMultistepScheduler
from PIL import Image

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.progress import finish
from dipgo_deploy.models.digits import SHIPPED, accuracy, load_classifier, load_split
from examples.digits.denoisers import build_denoiser, load_denoiser, save_denoiser
from examples.digits.evaluate import EvaluateOptions, evaluate, psnr, save_grid
from examples.digits.sampling import cycle_labels, draw_noise, sample
from examples.digits.train import augment

REFERENCE = SHIPPED.parent
FOLDERS = ("digits-unet", "digits-dit")
OTHERS = (DPMSolverMultistepScheduler, UniPCMultistepScheduler, PNDMScheduler, EulerDiscreteScheduler)


def test_augmentation_is_fixed_by_the_generator_and_keeps_the_range() -> None:
    images = load_split("test").images[:8]
    first, second = (augment(images, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, images)
    assert first.min() >= -1 and first.max() <= 1
    still = augment(images, torch.Generator(), shift=0, scale=0, turn=0)
    assert (still - images).abs().max() < 1e-5


def test_psnr_of_a_known_difference() -> None:
    reference = torch.zeros(2, 1, 4, 4)
    assert psnr(reference + 0.2, reference).tolist() == pytest.approx([20.0, 20.0], abs=1e-4)


def test_grid_has_ten_columns(tmp_path: Path) -> None:
    save_grid(-torch.ones(20, 1, 16, 16), tmp_path / "grid.png", zoom=1, gap=1)
    picture = Image.open(tmp_path / "grid.png")
    assert picture.size == (180, 36) and picture.getextrema() == (255, 255)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model_index.json is missing"):
        load_denoiser(tmp_path)


@pytest.mark.parametrize("folder", FOLDERS)
def test_samples_show_their_class(folder: str) -> None:
    denoiser, scheduler = load_denoiser(REFERENCE / folder)
    labels = cycle_labels(20)
    images = sample(denoiser, scheduler, draw_noise(20, seed=3), labels, steps=10, guidance=2.0)
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


def test_an_evaluation_returns_scores_and_draws_a_grid(tmp_path: Path) -> None:
    save_denoiser(build_denoiser("dit"), tmp_path)
    options = EvaluateOptions(samples=10, converged_samples=1, converged_steps=2, steps=1, guidances=(1.0,))
    scores = finish(evaluate(tmp_path, options))
    assert [score.guidance for score in scores] == [1.0] and 0 <= scores[0].accuracy <= 1
    assert Image.open(tmp_path / "samples.png").size == (720, 72)
