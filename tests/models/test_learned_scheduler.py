"""LearnedScheduler: numbers as written, files, refusals, and a plain pipeline that draws what a bundle draws."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from dipgo_deploy.bundle import export
from dipgo_deploy.bundle.load import load_bundle
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import save_schedule
from dipgo_deploy.core.learned_sampler import Combination, LearnedSampler, read_learned_sampler
from dipgo_deploy.core.sampler import LinearSampler
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import LearnedScheduler, check_learned, load_model, make_contract
from dipgo_deploy.models.full_run import full_run_of
from dipgo_deploy.models.sampler_coefficients import next_latent, read_sampler
from dipgo_deploy.models.sampler_note import guidance_note
from dipgo_deploy.models.schedulers import (
    is_recorded_as,
    own_config,
    record_scheduler,
    scheduler_from_spec,
)
from dipgo_deploy.pipeline import load_pipeline

SAMPLER = LearnedSampler(
    timesteps=(900.0, 555.5, 120.25),
    states=(
        Combination(0.9, 0.0, (0.2,)),
        Combination(0.8, 0.1, (0.3, -0.1)),
        Combination(1.1, -0.2, (-0.4, 0.2, 0.05)),
    ),
    inputs=(Combination(1.0), Combination(0.95, 0.02, (0.01,)), Combination(1.0, 0.0, (0.03, -0.02))),
    grid=(999.0, 600.0, 100.0),
    fitted={"method": "made up"},
)
BASE = {"_class_name": "DDIMScheduler", "beta_start": 0.0001, "beta_end": 0.015, "beta_schedule": "scaled_linear",
        "prediction_type": "epsilon", "clip_sample": False}  # fmt: skip


def spec_of(scheduler: LearnedScheduler, steps: int = 3):
    return record_scheduler(scheduler, steps, {})


def test_steps_and_network_inputs_are_the_written_combinations() -> None:
    scheduler = LearnedScheduler.of([SAMPLER], BASE)
    scheduler.set_timesteps(3)
    rng = torch.Generator().manual_seed(0)
    noise, *outputs = torch.randn(4, 2, 1, 4, 4, dtype=torch.float64, generator=rng)
    state, seen = noise, []
    for step, time in enumerate(scheduler.timesteps):
        row = SAMPLER.inputs[step]
        expected = row.state * state + row.noise * noise + sum(c * e for c, e in zip(row.outputs, seen, strict=True))
        # Guidance repeats the rows of a state. Each half is the network's input.
        doubled = scheduler.scale_model_input(torch.cat([state, state]), time)
        torch.testing.assert_close(doubled, torch.cat([expected, expected]), rtol=0, atol=1e-12)
        seen.insert(0, outputs[step])
        row = SAMPLER.states[step]
        expected = row.state * state + row.noise * noise + sum(c * e for c, e in zip(row.outputs, seen, strict=True))
        state = scheduler.step(outputs[step], time, state).prev_sample
        torch.testing.assert_close(state, expected, rtol=0, atol=1e-12)
    half = scheduler.step(outputs[0].half(), scheduler.timesteps[0].half(), noise.half()).prev_sample
    assert half.dtype == torch.float16


def test_a_pipeline_may_pass_the_network_input_in_place_of_the_state() -> None:
    """diffusers' DiT pipeline does so, with the doubled rows of guidance."""
    scheduler = LearnedScheduler.of([SAMPLER], BASE)
    scheduler.set_timesteps(3)
    noise, first, second = torch.randn(3, 2, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    state = scheduler.step(first, 900.0, scheduler.scale_model_input(noise, 900.0)).prev_sample
    entering = scheduler.scale_model_input(state, 555.5)
    assert not torch.equal(entering, state)
    after = scheduler.step(second, 555.5, entering).prev_sample
    torch.testing.assert_close(after, 0.8 * state + 0.1 * noise + 0.3 * second - 0.1 * first)


def test_the_reading_is_exact_and_survives_files(tmp_path: Path) -> None:
    model = load_model("digits-unet")
    full = make_contract(model).sampler
    scheduler = LearnedScheduler.of([SAMPLER], BASE, {"guidance_range": [1.0, 3.0]}, full)
    scheduler.save_pretrained(tmp_path)
    loaded = LearnedScheduler.from_pretrained(tmp_path)
    assert loaded.sampler == SAMPLER and loaded.full_run == full and dict(loaded.sampler.fitted) == SAMPLER.fitted
    spec = spec_of(loaded)
    reading = read_sampler(spec)
    assert isinstance(reading, LinearSampler) and reading == SAMPLER.linear and full_run_of(spec) == full
    noise, *outputs = np.random.default_rng(0).standard_normal((4, 1, 1, 2, 2))
    latents, own = [noise], scheduler_from_spec(spec)
    for step, time in enumerate(own.timesteps):
        after = own.step(torch.from_numpy(outputs[step]), time, torch.from_numpy(latents[-1])).prev_sample
        latents.append(next_latent(reading.updates[step], latents, outputs[: step + 1]))
        np.testing.assert_allclose(after.numpy(), latents[-1], rtol=0, atol=1e-12)
    assert is_recorded_as(own, spec) and not is_recorded_as(LearnedScheduler.of([replace(SAMPLER, grid=())], {}), spec)
    # Another scheduler can be made from the config, with the model's own noise schedule.
    assert diffusers.DDIMScheduler.from_config(loaded.config).config.beta_end == 0.015
    assert own_config(spec)["_class_name"] == "DDIMScheduler"
    assert guidance_note(spec, 2.0) == "" and "learned for guidance scale 1 to 3, the run has 4" in guidance_note(
        spec, 4
    )


def test_what_was_not_learned_is_refused() -> None:
    one = LearnedSampler((500.0,), (Combination(1.0, 0.0, (-0.5,)),))
    scheduler = LearnedScheduler.of([SAMPLER, one], BASE, {"latent_shape": [4, 8, 8]})
    with pytest.raises(ValueError, match="learned for 1, 3 steps, got 2"):
        scheduler.set_timesteps(2)
    scheduler.set_timesteps(3)
    assert spec_of(scheduler).calls == 3 and spec_of(scheduler, 1).calls == 1
    scheduler.set_timesteps(3)
    latent = torch.zeros(1, 4, 4, 4)
    with pytest.warns(UserWarning, match=r"learned on latents of shape \(4, 8, 8\), got \(4, 4, 4\)"):
        scheduler.step(latent, 900.0, latent)
    with pytest.raises(ValueError, match=r"step 1 of this sampler is at time 555.5, got 120.25"):
        scheduler.step(latent, 120.25, latent)
    scheduler.step(latent, 900.0, latent)  # The interrupted run is forgotten.
    with pytest.raises(ValueError, match="from its first step, not from step 1"):
        scheduler.set_begin_index(1)
    with pytest.raises(ValueError, match="starts from noise"):
        scheduler.add_noise(latent, latent, scheduler.timesteps[:1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timesteps": [1.0, 2.0, 3.0]}, "descending"),
        ({"timesteps": "900"}, "must be a list"),
        ({"states": [[1.0, 0.0, 0.1]] * 2}, "3 calls needs as many states"),
        ({"states": [[1.0, 0.0, 0.1, 0.1]] * 3}, "call 0 reads 2 outputs, but only 1 exist"),
        ({"states": [[0.0, 0.0, 0.0]] * 3}, "combines nothing"),
        ({"states": [[1.0]] * 3}, "coefficients of state and noise"),
        ({"initial_scale": "1"}, "must hold numbers"),
    ],
)
def test_damaged_documents_are_refused(change: dict[str, object], message: str) -> None:
    document = {**SAMPLER.document, **change}
    with pytest.raises(ValueError, match=message):
        read_learned_sampler(document)
    spec = spec_of(LearnedScheduler.of([SAMPLER], BASE))
    config = json.dumps({**spec.config_dict, "samplers": [document]})
    with pytest.raises(InputError, match="LearnedScheduler refuses its config"):
        scheduler_from_spec(replace(spec, config=config))


def test_a_plain_pipeline_draws_the_images_of_the_bundle(sd_pipeline: Path, tmp_path: Path) -> None:
    """Guidance, inputs of their own and a memory of the whole run, on tiny Stable Diffusion."""
    model = load_model(sd_pipeline)
    contract = make_contract(model, guidance="concat")
    made_for = {"model_class": model.class_name, "model_digest": model.digest}
    spec = spec_of(LearnedScheduler.of([SAMPLER], model.scheduler_config, made_for, contract.sampler))
    contract = replace(contract, sampler=spec)
    blocks = trace(model).blocks
    schedule = full_schedule(contract, blocks.granularity, "output", blocks.block_names)
    folder = export(model, schedule, tmp_path / "bundle")
    plain = diffusers.StableDiffusionPipeline.from_pretrained(sd_pipeline, safety_checker=None)
    plain.scheduler = LearnedScheduler.from_pretrained(folder)
    check_learned(plain)
    deployed = load_pipeline(folder)
    assert isinstance(deployed.scheduler, LearnedScheduler)
    arguments = {"prompt": ["a cat", "a dog"], "num_inference_steps": 3, "guidance_scale": 3.0, "output_type": "latent"}
    size = contract.latent_shape[-1] * plain.vae_scale_factor
    arguments |= {"height": size, "width": size}
    images = [
        pipeline(**arguments, generator=torch.Generator().manual_seed(0)).images for pipeline in (plain, deployed)
    ]
    assert (images[0] - images[1]).abs().max() <= 1e-4 * images[0].abs().max()
    save_schedule(tmp_path / "schedule.json", schedule)
    assert LearnedScheduler.from_pretrained(tmp_path / "schedule.json").sampler == SAMPLER
    assert load_bundle(folder).contract.sampler == spec
    with torch.no_grad():
        next(plain.unet.parameters()).add_(0.5)
    with pytest.raises(InputError, match="learn a sampler for this model"):
        check_learned(plain)
