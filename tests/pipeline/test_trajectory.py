"""What callbacks, interruptions and threads do to a run: the whole run is right, or it is refused by name."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.models import scheduler_from_spec
from dipgo_deploy.pipeline import DeployedDenoiser, RefusedCall
from dipgo_deploy.pipeline.tracker import CallTracker
from tests.pipeline.pipelines import SIDE, drawn
from tests.pipeline.scheduled import scheduled

CALL = {
    "prompt": "a cat", "num_inference_steps": 6, "guidance_scale": 4.0, "height": SIDE, "width": SIDE,
    "output_type": "latent",
}  # fmt: skip
INPUTS = ["latents", "prompt_embeds"]


@pytest.fixture
def bundle(sd_bundle: Path):
    return load_bundle(sd_bundle)


@pytest.fixture
def pipelines(sd_pipeline: Path, bundle):
    """The PyTorch pipeline, and one with a deployed U-Net that falls back."""
    made = [diffusers.DiffusionPipeline.from_pretrained(sd_pipeline, safety_checker=None) for _ in range(2)]
    for pipeline in made:
        pipeline.scheduler = scheduler_from_spec(bundle.contract.sampler)
    made[1].unet = DeployedDenoiser.from_bundle(bundle, fallback=True)
    return made


def halve(pipeline, step, timestep, tensors):
    """Turn guidance off after step 2, as many callbacks do."""
    if step == 2:
        pipeline._guidance_scale = 0.0
        tensors["prompt_embeds"] = tensors["prompt_embeds"].chunk(2)[1]
    return tensors


def reword(pipeline, step, timestep, tensors):
    """Change the prompt after step 2."""
    return {**tensors, "prompt_embeds": tensors["prompt_embeds"] * (0.5 if step == 2 else 1.0)}


def alternate(pipeline, step, timestep, tensors):
    """Change the prompt after every step from step 2 on, there and back."""
    return {**tensors, "prompt_embeds": tensors["prompt_embeds"] * ([2.0, 0.5][step % 2] if step >= 2 else 1.0)}


CALLBACKS = {
    "halve": (halve, "the run started with 2 rows, but has 1 at step 3"),
    "reword": (reword, "the conditioning changed at step 3 of 6"),
    "alternate": (alternate, "the conditioning changed at step 3 of 6"),
}


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_that_changes_the_call_in_mid_run_is_refused_and_falls_back(pipelines, bundle, name: str):
    """With fallback, PyTorch makes steps 3 to 5 from the latents of that step on, whatever the callback does later."""
    plain, deployed = pipelines
    callback, says = CALLBACKS[name]
    call = {**CALL, "callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": INPUTS}
    with pytest.warns(UserWarning, match=says):
        images = drawn(deployed, call)
    expected = drawn(plain, {**call, "callback_on_step_end": switching(plain, bundle, callback)})
    assert np.abs(images - expected).max() <= 1e-4 * np.abs(expected).max()
    strict = deployed
    strict.unet = DeployedDenoiser.from_bundle(bundle)
    with pytest.raises(RefusedCall, match=says):
        drawn(strict, call)


def switching(pipeline, bundle, callback):
    """A callback after which steps 0 to 2 have run under the schedule in PyTorch, and the rest on the plain model."""
    context = scheduled(pipeline.unet, bundle.schedule)
    context.__enter__()

    def switch(pipe, step, timestep, tensors):
        if step == 2:
            context.__exit__(None, None, None)
        return callback(pipe, step, timestep, tensors)

    return switch


def test_a_run_that_is_interrupted_by_the_pipeline_leaves_the_next_one_whole(pipelines):
    deployed = pipelines[1]
    first = drawn(deployed, CALL)

    def interrupt(pipe, step, timestep, tensors):
        pipe._interrupt = step >= 1
        return tensors

    assert not np.array_equal(drawn(deployed, {**CALL, "callback_on_step_end": interrupt}), first)
    assert np.array_equal(drawn(deployed, CALL), first)


TWICE = (901.0, 901.0, 501.0, 101.0)


def test_the_place_of_a_timestep_tells_a_fresh_run_from_the_next_step():
    """Rounded Karras sigmas of a squared-cosine schedule have their first timestep twice."""
    times = torch.tensor(TWICE, dtype=torch.int64)
    calls = CallTracker(SamplerSpec("DPMSolverMultistepScheduler", "{}", 4, TWICE))

    def follow(step: int) -> tuple[int, int]:
        view = times[step].expand(2) if step % 2 else times[step]
        place = calls.follow(TWICE[step], 1e-3, True, view)
        return place.start, place.step

    assert follow(0) == (0, 0), "interrupted after this step"
    assert [follow(step) for step in range(4)] == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert [follow(step) for step in (1, 2, 3)] == [(1, 1), (1, 2), (1, 3)], "image-to-image starts at the second"
    assert calls.follow(901.0, 1e-3, True).step == 0, "a bare number is the first of them"


def test_threads_with_denoisers_of_their_own_draw_what_they_draw_alone(pipelines, bundle):
    expected = {seed: drawn(pipelines[1], CALL, seed) for seed in (1, 2)}
    unets = {seed: copy.deepcopy(pipelines[1].unet) for seed in expected}

    def draw(seed: int) -> np.ndarray:
        parts = {
            **pipelines[1].components,
            "unet": unets[seed],
            "scheduler": scheduler_from_spec(bundle.contract.sampler),
        }
        return drawn(diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False), CALL, seed)

    with ThreadPoolExecutor(2) as pool:
        assert all(
            np.array_equal(made, expected[seed]) for seed, made in zip(expected, pool.map(draw, expected), strict=True)
        )


def test_a_run_that_another_thread_overtakes_is_refused(bundle):
    unet, times = DeployedDenoiser.from_bundle(bundle, fallback=True), bundle.contract.sampler.timesteps
    latent, texts = torch.randn(1, 4, 8, 8).repeat(2, 1, 1, 1), [torch.randn(2, 7, 12) for _ in range(2)]

    def elsewhere(*steps: int) -> list[torch.Tensor]:
        made: list[torch.Tensor] = []
        thread = threading.Thread(target=lambda: made.extend(unet(latent, times[s], texts[1]).sample for s in steps))
        thread.start()
        thread.join()
        return made

    alone = elsewhere(*range(6))
    unet(latent, times[0], texts[0])
    overtaking = elsewhere(0)
    with pytest.raises(UsageError, match="another thread has started a run in the middle of this run"):
        unet(latent, times[1], texts[0])
    overtaking += elsewhere(*range(1, 6))
    assert all(torch.equal(made, expected) for made, expected in zip(overtaking, alone, strict=True))
    unet(latent, times[0], texts[0])
