"""DDIM on a grid is diffusers' DDIM where that has the grid, and the held prediction of a longer run."""

from __future__ import annotations

import numpy as np
import pytest

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.models.sampler_coefficients import next_latent, read_sampler
from dipgo_deploy.models.samplers import sampler_spec
from dipgo_deploy.models.time_grid import ddim_on_grid

MODEL = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}


def sampled(reading, outputs: np.ndarray) -> np.ndarray:
    """The last latent of a run on ``outputs`` (calls, elements), from ones."""
    latents = [reading.initial_scale * np.ones_like(outputs[0])]
    for call, update in enumerate(reading.updates):
        latents.append(next_latent(update, latents, list(outputs[: call + 1])))
    return latents[-1]


@pytest.mark.parametrize("options", [*({"prediction_type": kind} for kind in PREDICTIONS), ZERO_SNR], ids=str)
@pytest.mark.parametrize(
    "spacing", [{"timestep_spacing": "trailing"}, {"timestep_spacing": "leading", "steps_offset": 1}]
)
@pytest.mark.parametrize("steps", [1, 5, 20, 50])
@pytest.mark.parametrize("to_one", [True, False])
def test_a_regular_grid_is_diffusers_own_ddim(options, spacing, steps, to_one):
    config = {**MODEL, **options, **spacing, "set_alpha_to_one": to_one}
    spec = sampler_spec("ddim", steps, config)
    own, reading = ddim_on_grid(spec.timesteps, config)
    theirs = read_sampler(spec)
    assert own == spec and reading.initial_scale == theirs.initial_scale
    for ours, wanted in zip(reading.updates, theirs.updates, strict=True):
        # diffusers takes its square roots in float32, and some terms cancel
        pair = np.array([(*wanted.latents, 0.0)[0], (*wanted.outputs, 0.0)[0]])
        assert np.abs(np.array([ours.latents[0], ours.outputs[0]]) - pair).max() <= 1e-6 * max(1, np.abs(pair).max())


@pytest.mark.parametrize("computed", [range(0, 50, 5), (0, 7, 13, 19, 20, 21, 26, 32, 39, 48), (0,)])
def test_it_is_the_held_noise_of_a_longer_run(computed):
    config = {**MODEL, "timestep_spacing": "trailing"}
    full = sampler_spec("ddim", 50, config)
    outputs = np.random.default_rng(0).standard_normal((len(computed), 16))
    held = outputs[np.searchsorted(list(computed), np.arange(50), side="right") - 1]
    _, reading = ddim_on_grid([full.timesteps[step] for step in computed], config)
    wanted, found = sampled(read_sampler(full), held), sampled(reading, outputs)
    assert np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_held_v_is_something_else():
    config = {**MODEL, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    full = sampler_spec("ddim", 50, config)
    outputs = np.random.default_rng(0).standard_normal((10, 16))
    _, reading = ddim_on_grid(full.timesteps[::5], config)
    wanted = sampled(read_sampler(full), np.repeat(outputs, 5, axis=0))
    assert np.abs(sampled(reading, outputs) - wanted).max() > 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize("timesteps", [(), (10, 20), (20, 20, 10), (999.5, 10), (1000, 10), (10, -1), (float("nan"),)])
def test_invalid_grids_are_refused(timesteps):
    with pytest.raises(InputError, match="timesteps must be whole numbers from 999 down to 0 in descending order, got"):
        ddim_on_grid(timesteps, MODEL)


@pytest.mark.parametrize("option", ["clip_sample", "thresholding"])
def test_what_is_not_linear_is_refused(option):
    with pytest.raises(InputError, match=f"sets {option}"):
        ddim_on_grid((900, 100), {**MODEL, option: True})


def test_noise_at_the_end_of_all_signal_is_refused():
    with pytest.raises(InputError, match="divides by zero"):
        ddim_on_grid((999, 499), {**MODEL, "rescale_betas_zero_snr": True})


def test_flow_matching_has_no_such_grid():
    with pytest.raises(UsageError, match="flow-matching"):
        ddim_on_grid((900, 100), {"_class_name": "FlowMatchEulerDiscreteScheduler"})
