"""A deployed denoiser in a pipeline: no stale features after any earlier run, refusals, fallback and late starts."""

from __future__ import annotations

import warnings
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.errors import GateError, UsageError
from dipgo_deploy.lowering import begin_at
from dipgo_deploy.models import scheduler_from_spec
from dipgo_deploy.pipeline import DeployedDenoiser, RefusedCall
from dipgo_deploy.pipeline.stepping import StepSession
from dipgo_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend
from tests.pipeline.pipelines import SIDE, drawn
from tests.pipeline.scheduled import scheduled

CALL = {
    "prompt": "a cat", "num_inference_steps": 6, "guidance_scale": 4.0, "height": SIDE, "width": SIDE,
    "output_type": "latent",
}  # fmt: skip


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def bundle(sd_bundle: Path):
    return load_bundle(sd_bundle)


@pytest.fixture
def plain(sd_pipeline: Path, bundle):
    """The PyTorch pipeline with the scheduler of the contract."""
    pipeline = quiet(diffusers.DiffusionPipeline.from_pretrained(sd_pipeline, safety_checker=None))
    pipeline.scheduler = scheduler_from_spec(bundle.contract.sampler)
    return pipeline


@pytest.fixture
def pipeline(sd_pipeline: Path, bundle):
    """An existing pipeline with a deployed U-Net."""
    deployed = quiet(diffusers.DiffusionPipeline.from_pretrained(sd_pipeline, safety_checker=None))
    deployed.scheduler = scheduler_from_spec(bundle.contract.sampler)
    deployed.unet = DeployedDenoiser.from_bundle(bundle, threads=1)
    return deployed


@pytest.fixture
def expected(plain, bundle) -> np.ndarray:
    with scheduled(plain.unet, bundle.schedule):
        return drawn(plain, CALL)


def close(images: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(images - expected).max() <= 1e-4 * np.abs(expected).max())


def test_an_existing_pipeline_draws_the_schedule(pipeline, expected):
    assert close(drawn(pipeline, CALL), expected)


def test_predictions_that_are_not_finite_end_the_run_even_with_a_fallback(pipeline, bundle, monkeypatch):
    pipeline.unet = DeployedDenoiser.from_bundle(bundle, fallback=True, threads=1)
    predict = StepSession.predict
    monkeypatch.setattr(StepSession, "predict", lambda *call: predict(*call) * (torch.inf if call[1] == 3 else 1))
    with pytest.raises(GateError, match="the predictions of step 3 hold NaN or infinity, so the weights are damaged"):
        pipeline(**CALL)


def test_the_live_model_draws_the_same(pipeline, bundle, expected):
    pipeline.unet = DeployedDenoiser.from_bundle(bundle, backend="torch")
    assert close(drawn(pipeline, CALL), expected)


@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_one_bundle_takes_texts_of_every_length(pipeline, plain, bundle, expected, backend):
    """154 tokens are two windows of CLIP, as tools for long prompts join them."""
    pipeline.unet = DeployedDenoiser.from_bundle(bundle, backend=backend)
    embeds = torch.randn(2, 154, 12, generator=torch.Generator().manual_seed(1))
    longer = {**CALL, "prompt": None, "prompt_embeds": embeds[:1], "negative_prompt_embeds": embeds[1:]}
    images = drawn(pipeline, longer)
    with scheduled(plain.unet, bundle.schedule):
        assert close(images, drawn(plain, longer))
    assert close(drawn(pipeline, CALL), expected) and not close(images, expected)


def test_two_runs_are_equal_and_others_between_them_leave_nothing(pipeline):
    first = drawn(pipeline, CALL)
    other = drawn(pipeline, {**CALL, "prompt": "dogs"}, seed=6)
    three = drawn(pipeline, {**CALL, "num_images_per_prompt": 3})
    assert np.array_equal(drawn(pipeline, CALL), first)
    assert not close(other, first) and three.shape[0] == 3


@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_run_after_an_interrupted_one_is_whole(pipeline, at: int):
    first = drawn(pipeline, CALL)

    def stop(pipe, step, timestep, tensors):
        if step == at:
            raise KeyboardInterrupt
        return tensors

    with pytest.raises(KeyboardInterrupt):
        drawn(pipeline, {**CALL, "prompt": "dogs", "callback_on_step_end": stop}, seed=6)
    assert np.array_equal(drawn(pipeline, CALL), first)


def test_no_graph_runs_where_the_prediction_is_held(pipeline, bundle, monkeypatch):
    runs, bind_run = [], OnnxRuntimeBackend.bind_run

    def bind_and_count(self, run, buffers, sizes):
        call = bind_run(self, run, buffers, sizes)
        return lambda: (runs.append(run.step), call())

    monkeypatch.setattr(OnnxRuntimeBackend, "bind_run", bind_and_count)
    drawn(pipeline, CALL)
    assert sorted(set(runs)) == sorted({run.step for run in bundle.program.runs})
    assert len(set(runs)) < bundle.schedule.steps, "the schedule holds no prediction, so this test shows nothing"


def test_callbacks_and_generators_work_as_ever(pipeline, expected):
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), tensors["latents"].shape))
        return {"latents": tensors["latents"] * 1.0}

    generators = [torch.Generator().manual_seed(5), torch.Generator().manual_seed(9)]
    made = pipeline(**{**CALL, "num_images_per_prompt": 2}, generator=generators, callback_on_step_end=look).images
    assert [step for step, *_ in seen] == list(range(6)) and seen[0][2] == (2, 4, 8, 8)
    assert close(made[:1].numpy().astype(np.float64), expected)


@pytest.mark.parametrize(("kind", "shape"), [("pil", (SIDE, SIDE)), ("np", (SIDE, SIDE, 3)), ("pt", (3, SIDE, SIDE))])
def test_output_types(pipeline, kind: str, shape: tuple[int, ...]):
    image = pipeline(**{**CALL, "output_type": kind}).images[0]
    assert (image.size if kind == "pil" else tuple(image.shape)) == shape


REFUSED = {
    "steps": ({"num_inference_steps": 5}, "DDIMScheduler with 6 steps, whose call 0 is at timestep 831, got 801"),
    "more steps": ({"num_inference_steps": 12}, "whose call 0 is at timestep 831, got 914: .*num_inference_steps=6"),
    "no guidance": ({"guidance_scale": 1.0}, "guidance 'concat' .*, got an odd number of rows"),
    "no guidance of two": (
        {"guidance_scale": 1.0, "num_images_per_prompt": 2}, "got two halves of rows with different latents",
    ),
    "shape": ({"height": 2 * SIDE}, r"latents of shape \(4, 8, 8\), got \(4, 16, 8\)"),
    "batch": ({"num_images_per_prompt": 65}, "takes 1 to 64 images, got 65"),
    "text": (
        {"prompt": None, "prompt_embeds": torch.zeros(1, 1025, 12), "negative_prompt_embeds": torch.zeros(1, 1025, 12)},
        "the bundle takes 1 to 1024 tokens, got 1025: pass a shorter text, or make a schedule with a wider range",
    ),
    "attention": ({"cross_attention_kwargs": {"gligen": {}}}, "no input for cross_attention_kwargs"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_call_outside_the_contract_is_refused_and_the_next_run_is_whole(pipeline, name: str):
    changed, says = REFUSED[name]
    first = drawn(pipeline, CALL)
    with pytest.raises(RefusedCall, match=says):
        drawn(pipeline, {**CALL, **changed})
    assert np.array_equal(drawn(pipeline, CALL), first)


@pytest.mark.parametrize("name", ["steps", "no guidance", "shape", "text"])
def test_with_fallback_the_pytorch_model_draws_it_and_says_so_once(pipeline, plain, bundle, name: str):
    changed, says = REFUSED[name]
    pipeline.unet = DeployedDenoiser.from_bundle(bundle, fallback=True)
    with pytest.warns(UserWarning, match=f"the PyTorch model runs instead of the bundle: .*{says}"):
        images = drawn(pipeline, {**CALL, **changed})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert np.array_equal(drawn(pipeline, {**CALL, **changed}), images)
    assert close(images, drawn(plain, {**CALL, **changed}))


def test_after_a_fallback_the_bundle_runs_again(pipeline, bundle, expected):
    pipeline.unet = DeployedDenoiser.from_bundle(bundle, fallback=True)
    with pytest.warns(UserWarning, match="got two"):
        drawn(pipeline, {**CALL, "guidance_scale": 1.0, "num_images_per_prompt": 2})
    assert close(drawn(pipeline, CALL), expected)


def test_a_sampler_that_leaves_the_grid_in_mid_run_falls_back_for_the_rest(pipeline, plain, bundle):
    """Three steps at 831, 499, 167: the first two are timesteps of the schedule, but not consecutive ones."""
    pipeline.unet = DeployedDenoiser.from_bundle(bundle, fallback=True)
    call = {**CALL, "num_inference_steps": None, "timesteps": [831, 499, 167]}
    for pipe in (pipeline, plain):
        pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    with pytest.warns(UserWarning, match="whose call 1 is at timestep 665, got 499"):
        images = drawn(pipeline, call)
    assert close(images, drawn(plain, call)), "the first step of a schedule is a full one"


def test_image_to_image_begins_in_mid_schedule_with_a_full_step(pipeline, plain, bundle):
    image = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    call = {**CALL, "image": image, "strength": 0.67}
    del call["height"], call["width"]
    begun = begin_at(bundle.schedule, 2)
    assert begun.compute[0] != bundle.schedule.compute[2], "the step is full anyway, so this test shows nothing"
    reference = quiet(diffusers.StableDiffusionImg2ImgPipeline(**plain.components, requires_safety_checker=False))
    with scheduled(reference.unet, begun):
        expected = drawn(reference, call)
    parts = {**plain.components, "unet": pipeline.unet}
    deployed = quiet(diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False))
    first = drawn(pipeline, CALL)
    assert close(drawn(deployed, call), expected)
    assert np.array_equal(drawn(pipeline, CALL), first)


def test_contexts_keep_trajectories_apart(bundle):
    unet, times = DeployedDenoiser.from_bundle(bundle), bundle.contract.sampler.timesteps
    texts = {name: torch.randn(2, 7, 12) for name in ("cond", "uncond")}
    latents = [torch.randn(1, 4, 8, 8).repeat(2, 1, 1, 1) for _ in times]

    def run(*names: str) -> dict[str, list[torch.Tensor]]:
        outputs: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        for latent, timestep in zip(latents, times, strict=True):
            for name in names:
                with unet.cache_context(name, step_index=0):
                    outputs[name].append(unet(latent, timestep, texts[name]).sample)
        return outputs

    both = run("cond", "uncond")
    for name in both:
        assert all(torch.equal(a, b) for a, b in zip(both[name], run(name)[name], strict=True))


def test_conditioning_written_to_in_place_is_noticed(bundle):
    unet, times = DeployedDenoiser.from_bundle(bundle), bundle.contract.sampler.timesteps
    text, latent = torch.randn(2, 7, 12), torch.randn(1, 4, 8, 8).repeat(2, 1, 1, 1)
    unet(latent, times[0], text)
    text.mul_(2)
    with pytest.raises(RefusedCall, match="the conditioning changed at step 1 of 6"):
        unet(latent, times[1], text)


def test_it_looks_like_the_model_it_stands_for(bundle, plain):
    unet = DeployedDenoiser.from_bundle(bundle)
    for name in ("in_channels", "sample_size", "cross_attention_dim"):
        assert getattr(unet.config, name) == getattr(plain.unet.config, name)
    assert unet.to(torch.float16).dtype == torch.float32 and unet.device == torch.device("cpu")
    assert sum(p.numel() for p in unet.parameters()) == 0
    assert next(DeployedDenoiser.from_bundle(bundle).parameters()).dtype == torch.float32, "pipelines read it"


def test_a_lora_is_refused(bundle):
    with pytest.raises(UsageError, match="fuse it before tracing, with with_loras"):
        DeployedDenoiser.from_bundle(bundle).load_lora_adapter({})


@pytest.mark.parametrize("fields", [{"cuda_graph": True}, {"backend": "torch", "compiler": "inductor"}])
def test_options_for_whole_runs_are_refused(bundle, fields):
    name = next(name for name in fields if name != "backend")
    with pytest.raises(UsageError, match=f"{name} is for whole runs, but a pipeline makes single steps: leave it out"):
        DeployedDenoiser.from_bundle(bundle, **fields)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU: the same runs on the CPU above")
@pytest.mark.parametrize("backend", ["onnxruntime", "torch"])
def test_on_a_gpu_it_draws_the_same(pipeline, bundle, expected, backend: str):
    pipeline.unet = DeployedDenoiser.from_bundle(bundle, backend=backend, device="cuda")
    images = drawn(pipeline, CALL)
    assert np.abs(images - expected).max() <= 1e-3 * np.abs(expected).max()
    assert np.array_equal(drawn(pipeline, CALL), images)
