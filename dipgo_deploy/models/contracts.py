"""The contract of a model under a sampler, and the record of the libraries that made it."""

from __future__ import annotations

from dipgo_deploy.core.contract import BatchRange, Contract, Guidance, installed_versions
from dipgo_deploy.models.loading import LoadedModel
from dipgo_deploy.models.pipeline_timesteps import timestep_arguments
from dipgo_deploy.models.samplers import sampler_spec, scheduler_class, usual_sampler
from dipgo_deploy.models.usual_run import usual_guidance, usual_steps

__all__ = ["library_versions", "make_contract"]

_LIBRARIES = ("dipgo-deploy", "torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def library_versions() -> dict[str, str]:
    """Installed versions of the libraries that shape a bundle."""
    return installed_versions(_LIBRARIES)


def make_contract(
    model: LoadedModel,
    *,
    sampler: str | None = None,
    steps: int | None = None,
    guidance: Guidance | None = None,
    batch: BatchRange = BatchRange(),
) -> Contract:
    """Contract of ``model`` under a sampler named in SAMPLERS, with its own noise schedule.

    None takes the model's own: its scheduler, and the steps and guidance layout of its pipeline (``usual_run``). Its
    timesteps are those that the model's own pipeline would use. Raises UsageError for an unknown sampler or an absurd
    number of steps.
    """
    config = model.scheduler_config
    sampler = sampler or usual_sampler(config)
    steps = usual_steps(model) if steps is None else steps
    given = timestep_arguments(model.class_name, model.latent_shape, scheduler_class(sampler), config, steps)
    return Contract(
        model_class=model.class_name,
        model_digest=model.digest,
        dtype=model.dtype,
        sampler=sampler_spec(sampler, steps, config, given),
        guidance=guidance or usual_guidance(model),
        latent_shape=model.latent_shape,
        batch=batch,
        versions=library_versions(),
    )
