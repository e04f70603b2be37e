from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.sampler import LinearSampler, OpaqueSampler
from dipgo_deploy.models.sampler_coefficients import next_latent, read_sampler
from dipgo_deploy.models.samplers import SAMPLERS, sampler_spec
from dipgo_deploy.models.schedulers import scheduler_from_spec

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers.*")

MODEL = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
V = {"prediction_type": "v_prediction"}
ZERO_SNR = {**V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
KARRAS = {"use_karras_sigmas": True}
LAST_SIGMA = {"final_sigmas_type": "sigma_min"}
LEADING = {"timestep_spacing": "leading"}
TRAILING = {"timestep_spacing": "trailing"}
SAMPLE = {"prediction_type": "sample"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}

OPTIONS = {
    "ddim": ({}, TRAILING, ZERO_SNR, SAMPLE, {"set_alpha_to_one": True}),
    "pndm": ({}, TRAILING, V),
    "dpmpp-2m": ({}, KARRAS, LEADING, {**KARRAS, **LAST_SIGMA}, ZERO_SNR, SAMPLE, FLOW, {"solver_order": 3}),
    "dpmpp-2m-karras": ({}, TRAILING),
    "unipc": ({}, KARRAS, TRAILING, LAST_SIGMA, V, FLOW, {"solver_order": 3}),
    "euler": ({}, KARRAS, LEADING, TRAILING, ZERO_SNR, {"use_exponential_sigmas": True}),
    "heun": ({}, KARRAS, TRAILING, V),
    "lms": ({}, KARRAS, V),
    "deis": ({}, KARRAS, TRAILING, V),
    "flow-euler": ({}, {"shift": 3.0}, KARRAS, {"use_dynamic_shifting": True, "mu": 1.15}),
}
STEPS = {"ddim": (6, 20, 50), "pndm": (6, 20, 50)}


def cases():
    """Every option in a short run, every sampler's defaults also in a longer run. The other lengths are slow tests."""
    for name, options in OPTIONS.items():
        for option in options:
            for steps in STEPS.get(name, (6, 20)):
                quick = steps == 6 or (steps == 20 and not option)
                yield pytest.param(name, option, steps, marks=() if quick else pytest.mark.slow)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def network():
    """A small nonlinear network under classifier-free guidance of scale 5: (latent, timestep) to guided output."""
    torch.manual_seed(3)
    layer = torch.nn.Conv2d(2, 2, 3, padding=1)

    @torch.no_grad()
    def guided(latent, timestep):
        rows = layer(torch.cat([latent, latent])) + float(timestep) / 1000
        rows[len(latent) :] += 0.3  # the conditional half
        unconditional, conditional = torch.tanh(rows).chunk(2)
        return unconditional + 5.0 * (conditional - unconditional)

    return guided


def real_latents(name, steps, options, noise, network):
    """The trajectory as a diffusers pipeline makes it, without any code of this project."""
    config = {**(MODEL if name != "flow-euler" else {}), **SAMPLERS[name].config, **options}
    mu = {"mu": config.pop("mu")} if "mu" in config else {}
    scheduler = getattr(diffusers, SAMPLERS[name].class_name).from_config(config)
    scheduler.set_timesteps(steps, **mu)
    latents = [noise * getattr(scheduler, "init_noise_sigma", 1.0)]
    for timestep in scheduler.timesteps:
        scaled = latents[-1]
        if hasattr(scheduler, "scale_model_input"):
            scaled = scheduler.scale_model_input(scaled, timestep)
        latents.append(scheduler.step(network(scaled, timestep), timestep, latents[-1]).prev_sample)
    return torch.stack(latents)


def linear_latents(reading, spec, noise, network):
    """The same trajectory from the coefficients alone, in float32."""
    latents, outputs = [noise * reading.initial_scale], []
    for scale, timestep, update in zip(reading.input_scales, spec.timesteps, reading.updates, strict=True):
        outputs.append(network(latents[-1] * scale, timestep))
        latents.append(next_latent(update, latents, outputs))
    return torch.stack(latents)


@pytest.mark.parametrize(("name", "options", "steps"), [*cases()])
def test_coefficients_make_the_trajectory_of_the_real_scheduler(name, options, steps, network):
    noise = torch.randn(1, 2, 5, 5, generator=torch.Generator().manual_seed(steps))
    spec = sampler_spec(name, steps, None if name == "flow-euler" else MODEL, options)
    reading = read_sampler(spec)
    assert isinstance(reading, LinearSampler)
    real = real_latents(name, steps, options, noise, network)
    ours = linear_latents(reading, spec, noise, network)
    assert real.shape == (spec.calls + 1, *noise.shape) and real.abs().max() > 0.1
    assert (ours - real).abs().max() <= 1e-5 * real.abs().max()


def test_a_wrong_coefficient_would_be_seen(network):
    noise, spec = torch.randn(1, 2, 5, 5), sampler_spec("dpmpp-2m", 20, MODEL)
    reading = read_sampler(spec)
    real = real_latents("dpmpp-2m", 20, {}, noise, network)
    wrong = [type(u)(u.latents, (u.outputs[0] * 1.001, *u.outputs[1:])) for u in reading.updates]
    ours = linear_latents(LinearSampler(1.0, reading.input_scales, tuple(wrong)), spec, noise, network)
    assert (ours - real).abs().max() > 1e-5 * real.abs().max()


def memory(reading):
    return [(len(update.latents), len(update.outputs)) for update in reading.updates]


@pytest.mark.parametrize(
    ("name", "largest", "steady"),
    [
        ("ddim", (1, 1), (1, 1)),
        ("euler", (1, 1), (1, 1)),
        ("flow-euler", (1, 1), (1, 1)),
        ("deis", (1, 2), (1, 2)),
        ("dpmpp-2m", (2, 2), (2, 2)),
        ("dpmpp-2m-karras", (2, 2), (2, 2)),
        ("pndm", (2, 4), (1, 4)),
        ("lms", (2, 4), (1, 4)),
        ("unipc", (3, 3), (3, 3)),
    ],
)
def test_memory_is_the_shortest(name, largest, steady):
    sizes = memory(read_sampler(sampler_spec(name, 20, None if name == "flow-euler" else MODEL)))
    assert tuple(map(max, zip(*sizes, strict=True))) == largest
    assert set(sizes[6:-1]) == {steady}
    assert sizes[0] == (1, 1)


def test_coefficients_are_the_published_ones():
    spec = sampler_spec("ddim", 10, MODEL)
    alphas = scheduler_from_spec(spec).alphas_cumprod.double()
    now, then = alphas[int(spec.timesteps[3])], alphas[int(spec.timesteps[4])]
    update = read_sampler(spec).updates[3]
    ratio = (then / now).sqrt()  # DDIM eq. 12 without noise
    assert update.latents == pytest.approx([ratio.item()], rel=1e-6)
    assert update.outputs == pytest.approx([((1 - then).sqrt() - ratio * (1 - now).sqrt()).item()], rel=1e-5)
    bashforth = np.array(read_sampler(sampler_spec("pndm", 20, MODEL)).updates[10].outputs)
    assert bashforth / bashforth[0] == pytest.approx(np.array([55, -59, 37, -9]) / 55)


def test_input_and_initial_scales_are_the_schedulers():
    reading = read_sampler(sampler_spec("euler", 8, MODEL, LEADING))
    sigmas = scheduler_from_spec(sampler_spec("euler", 8, MODEL, LEADING)).sigmas.double()
    assert reading.initial_scale == pytest.approx(float((sigmas[0] ** 2 + 1) ** 0.5))
    assert reading.input_scales == pytest.approx(((sigmas[:-1] ** 2 + 1) ** -0.5).tolist())


@pytest.mark.parametrize("steps", [4, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("ddim", {"clip_sample": True}, "clips its sample"),
        ("ddim", {"clip_sample": True, "clip_sample_range": 50.0}, "clips its sample"),
        ("heun", {"clip_sample": True}, "clips its sample"),
        ("ddim", {"thresholding": True}, "thresholds its sample"),
        ("dpmpp-2m", {"thresholding": True}, "thresholds its sample"),
        ("unipc", {"thresholding": True, "sample_max_value": 2.0}, "thresholds its sample"),
        ("euler-a", {}, "draws noise"),
        ("ddpm", {}, "draws noise"),
        ("ddpm", {"clip_sample": True}, "draws noise"),
        ("dpmpp-2m", {"algorithm_type": "sde-dpmsolver++"}, "draws noise"),
        ("flow-euler", {"stochastic_sampling": True}, "draws noise"),
    ],
)
def test_what_is_not_linear_is_opaque_and_says_why(name, options, reason, steps):
    spec = sampler_spec(name, steps, None if name == "flow-euler" else MODEL, options)
    reading = read_sampler(spec)
    assert isinstance(reading, OpaqueSampler)
    assert reading.reason == reason
    assert len(reading.input_scales) == spec.calls


def test_opaque_sampler_keeps_its_scales():
    spec = sampler_spec("euler-a", 5, MODEL)
    plain = read_sampler(sampler_spec("euler", 5, MODEL))
    assert read_sampler(spec).initial_scale == plain.initial_scale > 14
    assert read_sampler(spec).input_scales[0] == plain.input_scales[0] < 0.07


def test_memory_beyond_the_window_is_opaque():
    reading = read_sampler(sampler_spec("pndm", 20, MODEL, {"skip_prk_steps": False}))
    assert isinstance(reading, OpaqueSampler) and "is not linear in its last 4" in reading.reason


def test_learned_variance_option_leaves_the_reading_alone():
    plain = read_sampler(sampler_spec("dpmpp-2m", 12, MODEL))
    assert read_sampler(sampler_spec("dpmpp-2m", 12, MODEL, {"variance_type": "learned_range"})) == plain


def test_thousand_calls_of_ddim():
    reading = read_sampler(sampler_spec("ddim", 1000, {**MODEL, **TRAILING, "set_alpha_to_one": True}))
    assert memory(reading) == [(1, 1)] * 1000


def test_call_whose_output_changes_nothing_reads_none():
    # Timestep 0 to the alpha of timestep 0: the last step of this configuration keeps the latent as it is.
    update = read_sampler(sampler_spec("ddim", 1000, {**MODEL, **TRAILING, "set_alpha_to_one": False})).updates[-1]
    assert update.outputs == () and update.latents == pytest.approx([1.0])


def test_one_call():
    assert memory(read_sampler(sampler_spec("unipc", 1, MODEL))) == [(1, 1)]


def test_sampler_that_cannot_run_is_refused():
    with pytest.raises(InputError, match=r"stops at call 0, timestep 1000 .*choose another prediction_type"):
        read_sampler(sampler_spec("ddim", 1000, MODEL))
    with pytest.raises(InputError, match="prediction_type given as sample"):
        read_sampler(sampler_spec("pndm", 20, MODEL, SAMPLE))
    with pytest.raises(InputError, match=r"timestep 999 \(values that are not finite"):
        read_sampler(sampler_spec("ddim", 20, MODEL, {**ZERO_SNR, "prediction_type": "epsilon"}))


def test_reading_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    read_sampler(sampler_spec("euler-a", 5, MODEL))
    assert torch.equal(torch.rand(3), expected)
