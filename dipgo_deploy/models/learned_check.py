"""Whether a pipeline has the model that its learned scheduler was learned for."""

from __future__ import annotations

from typing import Any

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.models.cast import network_dtype
from dipgo_deploy.models.learned_scheduler import LearnedScheduler
from dipgo_deploy.models.sources.module import model_from_module

__all__ = ["check_learned"]

_DENOISERS = ("unet", "transformer")


def check_learned(pipeline: Any) -> None:
    """Compare a pipeline's denoiser with the model that its scheduler was learned for.

    Args:
        pipeline: a diffusers pipeline.

    Raises:
        UsageError: the pipeline has no learned scheduler, or no denoiser.
        InputError: the denoiser has another class or other weights.
    """
    module = next((part for name in _DENOISERS if (part := getattr(pipeline, name, None)) is not None), None)
    if module is None or not isinstance(pipeline.scheduler, LearnedScheduler):
        raise UsageError("the pipeline has no learned scheduler or no denoiser: set pipeline.scheduler first")
    made_for = pipeline.scheduler.config.made_for or {}
    expected, digest = made_for.get("model_class"), str(made_for.get("model_digest"))
    shape = tuple(made_for.get("latent_shape") or ()) or None
    model = model_from_module(module, dtype=str(network_dtype(module)).removeprefix("torch."), latent_shape=shape)
    if expected != model.class_name or not model.has_digest(digest):
        raise InputError(
            f"this sampler was learned for a {expected} ({digest[:12]}), the pipeline has a {model.class_name} "
            f"({model.digest[:12]}): learn a sampler for this model"
        )
