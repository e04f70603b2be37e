"""The contract of a model under a sampler, with the defaults of the model's own pipeline.

Guidance layout and number of steps of an ordinary run come from the first source that defines them:

1. the model's config, as for the shipped architectures
2. the defaults of its pipeline's call in diffusers: the number of steps, and whether it uses guidance
3. the pipelines of its class, with 50 steps

A folder that names the plain ``DiffusionPipeline`` has no pipeline of its own, and so no guidance.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dipgo_deploy.core.contract import BatchRange, Contract, Guidance, SamplerSpec, installed_versions
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.tensors import HEIGHT, TOKENS, WIDTH
from dipgo_deploy.models.loaded_model import LoadedModel
from dipgo_deploy.models.presets.pipeline_call import PipelineCall, pipeline_defaults
from dipgo_deploy.models.presets.pipeline_check import check_rows
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.models.samplers import sampler_spec, scheduler_class

__all__ = [
    "CONCAT_GUIDANCE_CLASSES",
    "call_arguments",
    "default_guidance",
    "default_steps",
    "library_versions",
    "make_contract",
    "timestep_arguments",
]

_LIBRARIES = ("dipgo-deploy", "torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")

CONCAT_GUIDANCE_CLASSES = (
    "UNet2DConditionModel",
    "DiTTransformer2DModel",
    "PixArtTransformer2DModel",
    "SD3Transformer2DModel",
)
"""Classes whose pipelines concatenate unconditional and conditional rows for a guidance_scale above 1.

Pipelines of other classes call the network twice, or pass the scale to the network as an input.
"""

_LEARNED_VARIANCE = ("DDPMScheduler", "DDPMParallelScheduler", "UnCLIPScheduler")
"""Samplers that draw noise of a variance which the network may predict."""

_STEPS = 50

_FLUX = "FluxTransformer2DModel"
_MAX_SHIFT = {_FLUX: 1.15, "SD3Transformer2DModel": 1.16}
"""Classes whose pipelines shift timesteps by image size, with the shift of the largest image in diffusers."""

_STRENGTH_PIPELINE = "LatentConsistencyModelImg2ImgPipeline"
"""The pipeline that passes its strength to ``set_timesteps``. Other pipelines leave the first timesteps out."""

_PATCH = 2
"""Side of the square of latent pixels that is one token, for FLUX and Stable Diffusion 3."""


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries on which the contents of a bundle depend."""
    return installed_versions(_LIBRARIES)


def make_contract(
    model: LoadedModel,
    *,
    sampler: str | None = None,
    sampler_options: Mapping[str, Any] | None = None,
    steps: int | None = None,
    guidance: Guidance | None = None,
    batch: BatchRange = BatchRange(),
) -> Contract:
    """Make the contract of a model under a sampler, with the timesteps of the model's own pipeline.

    The sampler is run once on small tensors, so a sampler that no program can run is refused here.

    Args:
        model: the model.
        sampler: a name of SAMPLERS. Default: the model's own scheduler, with its own class and options.
        sampler_options: options of the scheduler that override the model's own, such as ``clip_sample``.
        steps: number of sampler steps. Default: that of the model's pipeline.
        guidance: guidance layout. Default: that of the model's pipeline.
        batch: numbers of images per call that engines are built for.

    Returns:
        The contract.

    Raises:
        UsageError: the sampler or an option is unknown, the number of steps is out of range, or the model's pipeline
            calls the network in a way that no schedule holds.
        InputError: the model's own scheduler refuses its config, or no program can run it.
        MissingError: a package that the scheduler needs is not installed.
    """
    pipeline = model.pipeline_call.pipeline
    check_rows(pipeline, pipeline_defaults(pipeline) or {}, guidance or model.guidance)
    steps = default_steps(model) if steps is None else steps
    options = dict(sampler_options or {})
    config = {**model.scheduler_config, **options}
    arguments = call_arguments(model, scheduler_class(sampler, config), config, steps)
    # Only what the user chose counts as an override: a refusal of the model's own config names its file.
    spec = sampler_spec(sampler, steps, model.scheduler_config, options, arguments)
    _check_variance(spec)
    _check_shift(model, arguments)
    read_sampler(spec)
    return Contract(
        model_class=model.class_name,
        model_digest=model.digest,
        dtype=model.dtype,
        sampler=spec,
        guidance=_checked_guidance(model, guidance or default_guidance(model)),
        latent_shape=model.latent_shape,
        batch=batch,
        tokens=model.sizes.get(TOKENS),
        height=model.sizes.get(HEIGHT),
        width=model.sizes.get(WIDTH),
        versions=library_versions(),
    )


def _check_shift(model: LoadedModel, arguments: Mapping[str, Any]) -> None:
    """Raise UsageError for timesteps that follow from the image's size, where the size is free."""
    if "mu" in arguments and {HEIGHT, WIDTH} & model.ranges.keys():
        raise UsageError(
            f"the scheduler shifts its timesteps by the image's size (use_dynamic_shifting), so a schedule of this "
            f"{model.class_name} is for one size: choose one size"
        )


def _check_variance(sampler: SamplerSpec) -> None:
    """Raise UsageError for a sampler that reads its noise's variance from the network's output."""
    learned = str(sampler.config_dict.get("variance_type", "")).startswith("learned")
    if learned and sampler.class_name in _LEARNED_VARIANCE:
        raise UsageError(
            f"{sampler.class_name} reads a variance from the network's output, which no schedule keeps: choose sampler "
            "dpmpp-2m, or another one that draws no noise"
        )


def _checked_guidance(model: LoadedModel, guidance: Guidance) -> Guidance:
    """The layout. Raises UsageError for concatenated rows of a model that knows no image without a class."""
    entries = [] if model.class_embedder is not None else list(model.inputs.values())
    classes = [entry for entry in entries if entry.classes is not None]
    has_text = any(entry.classes is None and entry.value is None for entry in entries)
    if guidance == "concat" and classes and not has_text and all(entry.null is None for entry in classes):
        raise UsageError(
            f"this {model.class_name} has no label for an image without a class, so guidance would change nothing: "
            "choose guidance 'none'"
        )
    return guidance


def default_guidance(model: LoadedModel) -> Guidance:
    """The guidance layout of an ordinary run. A guidance-distilled model has no unconditional rows."""
    if model.guidance is not None:
        return model.guidance
    if model.class_name not in CONCAT_GUIDANCE_CLASSES or model.config.get("time_cond_proj_dim") is not None:
        return "none"
    defaults = pipeline_defaults(model.pipeline_call.pipeline)
    return "concat" if defaults is None or (defaults.get("guidance_scale") or 0.0) > 1.0 else "none"


def default_steps(model: LoadedModel) -> int:
    """The number of sampler steps of an ordinary run."""
    return model.steps or model.pipeline_call.default("num_inference_steps") or _STEPS


def call_arguments(model: LoadedModel, scheduler: type, config: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """Arguments that the default call of a model's pipeline passes to its scheduler, besides the number of steps.

    FLUX's pipelines choose evenly spaced noise levels from 1 down. The pipelines of FLUX and Stable Diffusion 3 shift
    them by the image size if the scheduler's config says so (``calculate_shift`` in diffusers). A schedule for other
    timesteps would not fit the pipeline. Many pipelines pass their own default of ``eta`` to ``step``.

    Args:
        model: the denoiser, and its pipeline's folder.
        scheduler: the scheduler's class.
        config: the scheduler's config.
        steps: number of sampler steps.

    Returns:
        ``sigmas``, ``mu``, ``eta`` and ``strength``, if the pipeline passes them, the scheduler accepts them and they
        differ from the scheduler's defaults.
    """
    return {
        **timestep_arguments(model.class_name, model.latent_shape, scheduler, config, steps),
        **_eta(scheduler, model.pipeline_call.default("eta")),
        **_strength(scheduler, model.pipeline_call),
    }


def _eta(scheduler: Any, eta: float | None) -> dict[str, float]:
    parameter = inspect.signature(getattr(scheduler, "step", _eta)).parameters.get("eta")
    return {} if parameter is None or eta is None or eta == parameter.default else {"eta": eta}


def _strength(scheduler: Any, call: PipelineCall) -> dict[str, float]:
    """How far an image-to-image run of a latent consistency model goes back. It moves all timesteps."""
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    passes = call.pipeline == _STRENGTH_PIPELINE and "strength" in accepted
    return {"strength": call.default("strength")} if passes else {}


def timestep_arguments(
    model_class: str, latent_shape: Sequence[int], scheduler: type, config: Mapping[str, Any], steps: int
) -> dict[str, Any]:
    """Arguments that a family's pipeline passes to ``set_timesteps`` besides the number of steps.

    FLUX's pipelines choose evenly spaced noise levels from 1 down. The pipelines of FLUX and Stable Diffusion 3 shift
    them by the image size if the scheduler's config says so (``calculate_shift`` in diffusers). A schedule for other
    timesteps would not fit the pipeline.

    Args:
        model_class: the denoiser's class.
        latent_shape: the latent of one image, (C, H, W).
        scheduler: the scheduler's class.
        config: the scheduler's config.
        steps: number of sampler steps.

    Returns:
        ``sigmas`` and ``mu``, if the pipeline passes them and the scheduler accepts them.
    """
    if model_class not in _MAX_SHIFT:
        return {}
    accepted = inspect.signature(scheduler.set_timesteps).parameters  # type: ignore[attr-defined]
    arguments: dict[str, Any] = {}
    if model_class == _FLUX and "sigmas" in accepted and not config.get("use_flow_sigmas"):
        arguments["sigmas"] = np.linspace(1.0, 1 / steps, steps).tolist()
    if config.get("use_dynamic_shifting") and "mu" in accepted:
        arguments["mu"] = _shift(model_class, latent_shape, config)
    return arguments


def _shift(model_class: str, latent_shape: Sequence[int], config: Mapping[str, Any]) -> float:
    """The shift, which is linear in the number of image tokens."""
    tokens = (latent_shape[1] // _PATCH) * (latent_shape[2] // _PATCH)
    min_tokens, max_tokens = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    min_shift, max_shift = config.get("base_shift", 0.5), config.get("max_shift", _MAX_SHIFT[model_class])
    slope = (max_shift - min_shift) / (max_tokens - min_tokens)
    return float(tokens * slope + (min_shift - slope * min_tokens))
