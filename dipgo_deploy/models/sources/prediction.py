"""The sampler of a checkpoint in one file. The file holds weights, so its markers and the architecture must tell.

1. A config of the user's own with a scheduler is followed, whatever the file says.
2. Otherwise the scheduler is the one of the published model of this kind, as in diffusers. This is an assumption.
3. Markers in the file change it. diffusers does not read them, but other tools write and read them: the empty tensors
   ``v_pred`` and ``ztsnr``, the tensor ``global_step``, and ``modelspec`` entries of the header.
4. Markers of another noise schedule (EDM) are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import safe_open

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.models.sources.random import RandomConfig, read_random_config
from dipgo_deploy.models.sources.safetensors_header import Header

__all__ = ["is_sd2_base", "with_scheduler"]

_EDM = {"edm_mean": "Playground v2.5", "edm_std": "Playground v2.5", "edm_vpred.sigma_max": "CosXL"}
"""Tensors that mark the noise schedule EDM, and the models that have them."""

_SD2_BASE_STEPS = 875000
"""The value of ``global_step`` in the published base model of Stable Diffusion 2, as in diffusers."""

_EPSILON, _V = "epsilon", "v_prediction"
_SPELLINGS = {"epsilon": _EPSILON, "eps": _EPSILON, "v": _V, "v_prediction": _V, "v-prediction": _V, "vpred": _V}


def is_sd2_base(path: Path, header: Header) -> bool:
    """Whether a file of Stable Diffusion 2 is marked as the base model, which predicts the noise at 512 pixels."""
    prediction, _ = _marked_prediction(path, header)
    return prediction == _EPSILON


def with_scheduler(
    path: Path, header: Header, architecture: RandomConfig, published: str, own: bool
) -> tuple[RandomConfig, tuple[str, ...]]:
    """The architecture with the file's scheduler.

    Args:
        path: the file.
        header: its header.
        architecture: the config of the file.
        published: the shipped config of the file's kind.
        own: whether the user gave the config.

    Returns:
        The architecture, and what was assumed.

    Raises:
        InputError: the file is marked for the noise schedule EDM.
    """
    prediction, marker = _marked_prediction(path, header)
    if own and architecture.scheduler is not None:
        said = architecture.scheduler.get("prediction_type", _EPSILON)
        if prediction is None or prediction == said:
            return architecture, ()
        return architecture, (f"{path.name} is marked for {prediction} by {marker}, but its --config says {said}",)
    if edm := next((name for name in _EDM if name in header.shapes), None):
        raise InputError(
            f"{path} is marked for the noise schedule EDM ({edm}, as {_EDM[edm]}), which no sampler here has: give its "
            "diffusers folder"
        )
    source = architecture if architecture.scheduler is not None else read_random_config(published)
    scheduler, title = dict(source.scheduler or {}), source.title
    if architecture.denoiser["_class_name"] != "UNet2DConditionModel":
        return replace(architecture, scheduler=scheduler), (_scheduler_assumption(path, scheduler, title),)
    marked = {**scheduler, **({"prediction_type": prediction} if prediction else {}), **_zero_snr(header)}
    assumption = _scheduler_assumption(path, marked, title)
    if marker:
        assumption += f" Its prediction is told by {marker} in the file."
    if published == "sd21" and not marker:
        assumption += " For the base model of Stable Diffusion 2 (epsilon, 512 pixels), give --config sd21-base."
    return replace(architecture, scheduler=marked), (assumption,)


def _scheduler_assumption(path: Path, scheduler: Mapping[str, Any], title: str) -> str:
    prediction = scheduler.get("prediction_type")
    words = f" with {prediction}" if prediction else ""
    words += " and zero terminal SNR" if scheduler.get("rescale_betas_zero_snr") else ""
    return (
        f"{path.name} names no scheduler: {scheduler['_class_name']}{words} as in {title}. --sampler or a --config "
        "with a scheduler changes it."
    )


def _zero_snr(header: Header) -> dict[str, bool]:
    return {"rescale_betas_zero_snr": True} if "ztsnr" in header.shapes else {}


def _marked_prediction(path: Path, header: Header) -> tuple[str | None, str]:
    """The prediction type that a file is marked for, and the marker. None and "" without a marker."""
    if "v_pred" in header.shapes:
        return _V, "the tensor v_pred"
    spelling = header.metadata.get("modelspec.prediction_type", "").lower()
    if spelling in _SPELLINGS:
        return _SPELLINGS[spelling], "modelspec.prediction_type"
    family = header.metadata.get("modelspec.architecture", "")
    if family.startswith("stable-diffusion-v2-"):
        return (_V if family.endswith("-v") else _EPSILON), "modelspec.architecture"
    if "global_step" in header.shapes and not header.shapes["global_step"]:
        with safe_open(path, framework="pt") as file:
            if int(file.get_tensor("global_step")) == _SD2_BASE_STEPS:
                return _EPSILON, "the tensor global_step"
    return None, ""
