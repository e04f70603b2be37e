"""Every scheduler of diffusers as a pipeline's own: the latents of the plain pipeline, or a refusal in one line.

The bundle's graphs are those of one tiny U-Net. Only the program differs from cell to cell.
"""

from __future__ import annotations

import inspect
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.errors import DipgoError
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.models import LoadedModel, load_model, make_contract
from dipgo_deploy.models.suppress_logging import suppress_diffusers_logging
from dipgo_deploy.runtime.open import make_backend
from dipgo_deploy.runtime.session import Session
from tests.models.every_scheduler import PAGE, REQUIRED, STEPS, cells, table, table_of
from tests.models.sources.test_pipeline_scheduler import with_scheduler

pytestmark = pytest.mark.filterwarnings("ignore")

QUICK = (
    ("CMStochasticIterativeScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
    ("DDIMParallelScheduler", {}),
    ("FlowMatchHeunDiscreteScheduler", {}),
    ("KDPM2DiscreteScheduler", {}),
    ("LCMScheduler", {}),
    ("TCDScheduler", {}),
    ("UnCLIPScheduler", {}),
)
SCALE, SEED = 4.0, 7
TOLERANCE = 1e-4
"""Of the largest latent of the run. Latents of sigma schedulers begin at thousands and end at one."""


@pytest.fixture(scope="module")
def inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        "noise": torch.randn(2, 4, 8, 8, generator=generator),
        "negative": torch.randn(2, 7, 12, generator=generator),
        "positive": torch.randn(2, 7, 12, generator=generator),
    }


def generators() -> list[torch.Generator]:
    return [torch.Generator().manual_seed(SEED + image) for image in range(2)]


def by_pipeline(folder: Path, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The latents after every step of the plain pipeline's call."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    latents: list[torch.Tensor] = []

    def keep(pipeline: Any, step: int, timestep: Any, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        latents.append(values["latents"])
        torch.manual_seed(SEED + step + 1)
        return values

    torch.manual_seed(SEED)
    pipeline(
        prompt_embeds=inputs["positive"], negative_prompt_embeds=inputs["negative"], latents=inputs["noise"],
        num_inference_steps=STEPS, guidance_scale=SCALE, output_type="latent", generator=generators(),
        callback_on_step_end=keep,
    )  # fmt: skip
    return latents


@torch.no_grad()
def by_loop(folder: Path, inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """The loop that every pipeline of diffusers has, for schedulers that this pipeline does not take."""
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    scheduler, latent = pipeline.scheduler, inputs["noise"]
    scheduler.set_timesteps(STEPS)
    latent = latent * getattr(scheduler, "init_noise_sigma", 1.0)
    arguments = {"generator": generators()} if "generator" in inspect.signature(scheduler.step).parameters else {}
    tokens, latents = torch.cat([inputs["negative"], inputs["positive"]]), []
    for step, timestep in enumerate(scheduler.timesteps):
        torch.manual_seed(SEED + step)
        scaled = scheduler.scale_model_input(latent, timestep) if hasattr(scheduler, "scale_model_input") else latent
        rows = pipeline.unet(torch.cat([scaled, scaled]), timestep, encoder_hidden_states=tokens).sample.chunk(2)
        guided = rows[0] + SCALE * (rows[1] - rows[0])
        latent = scheduler.step(guided, timestep, latent, **arguments, return_dict=False)[0]
        latents.append(latent)
    return latents


def plain_latents(folder: Path, inputs: dict[str, torch.Tensor]) -> np.ndarray | None:
    """Latents (steps, B, C, H, W) of plain diffusers, None where it fails or gives numbers that are not finite."""
    for run in (by_pipeline, by_loop):
        try:
            with suppress_diffusers_logging(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                latents = torch.stack(run(folder, inputs)).double().numpy()
        except Exception:
            continue
        return latents if np.isfinite(latents).all() else None
    return None


def loaded(folder: Path) -> LoadedModel:
    """The model of a folder, for the length of the text in ``inputs``."""
    return replace(load_model(folder, meta=True), text_tokens=7)


def our_latent(contract: Any, bundle: Any, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    """The last latent of the program that computes every block at every step."""
    schedule = full_schedule(contract, bundle.schedule.granularity, "output", bundle.blocks.block_names)
    compiled, run = bundle.compile(schedule), RunOptions("onnxruntime", "cpu", 1)
    session = Session(compiled.program, make_backend(bundle, compiled, run), 2, SCALE)
    tokens = torch.cat([inputs["negative"], inputs["positive"]]).numpy()
    return session.run(inputs["noise"].numpy(), {"encoder_hidden_states": tokens}, SEED)


def check_cell(name: str, options: dict[str, Any], bundle: Any, source: Path, folder: Path, inputs: Any) -> None:
    with_scheduler(source, folder, name, options)
    expected = plain_latents(folder, inputs)
    try:
        contract = make_contract(loaded(folder), steps=STEPS)
    except DipgoError as refusal:
        message = str(refusal)
        assert expected is None, f"plain diffusers runs it, but: {message}"
        assert "\n" not in message and ": " in message and "Error" not in message
        return
    latent = our_latent(contract, bundle, inputs)
    if expected is not None:
        assert contract.sampler.calls == len(expected)
        assert np.abs(latent - expected[-1]).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize(
    ("name", "options"),
    [*QUICK, *(pytest.param(*cell, marks=pytest.mark.slow) for cell in cells() if cell not in QUICK)],
)
def test_latents_are_those_of_plain_diffusers_or_the_refusal_is_clean(
    name, options, sd_bundle, sd_pipeline, tmp_path, inputs
):
    check_cell(name, options, load_bundle(sd_bundle), sd_pipeline, tmp_path / "model", inputs)


def test_a_wrong_sampler_would_be_seen(sd_bundle, sd_pipeline, tmp_path, inputs):
    folder = with_scheduler(sd_pipeline, tmp_path / "model", "KDPM2DiscreteScheduler", {})
    contract = make_contract(loaded(folder), sampler="heun", steps=STEPS)
    expected = plain_latents(folder, inputs)
    latent = our_latent(contract, load_bundle(sd_bundle), inputs)
    assert np.abs(latent - expected[-1]).max() > 10 * TOLERANCE * np.abs(expected).max()


def test_the_page_of_schedulers_is_current():
    assert REQUIRED.keys() <= {name for name, _ in cells()}
    assert table_of(PAGE.read_text(encoding="utf-8")) == table()
