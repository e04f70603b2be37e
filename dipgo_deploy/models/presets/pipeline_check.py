"""Pipelines whose calls of the denoiser no schedule holds. They are refused before weights are read.

1. Another network's outputs go into the denoiser. The pipeline has that network as a component.
2. The code of a class reaches into its denoiser, or calls it in its own order. Such classes are listed by name. The
   sweep over all pipeline classes (``tests/pipeline/every_pipeline.py``) finds the classes that belong here.
3. A call makes more than two rows an image, by an argument that can be turned off.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dipgo_deploy.core.errors import InputError, UsageError

__all__ = ["check_pipeline", "check_rows", "present_parts"]

_SIDE_NETWORKS = {
    "controlnet": "the residuals of a ControlNet",
    "adapter": "the residuals of a T2I-Adapter",
    "motion_adapter": "the layers of a motion adapter",
}
"""Components whose outputs a pipeline adds inside its denoiser."""

_ATTENTION = "replaces attention inside its denoiser, which a graph holds as it was traced"
_INVERSION = "first runs its denoiser backwards over an image, in an order that no schedule holds"

_REASONS: Mapping[str, str] = {
    "StableDiffusionSAGPipeline": _ATTENTION,
    "StableDiffusionAttendAndExcitePipeline": "needs gradients of its denoiser, which a graph does not have",
    "TextToVideoZeroPipeline": _ATTENTION,
    "TextToVideoZeroSDXLPipeline": _ATTENTION,
    "StableDiffusionGLIGENPipeline": "gives its denoiser boxes, for which a graph has no input",
    "StableDiffusionGLIGENTextImagePipeline": "gives its denoiser boxes, for which a graph has no input",
    "LEditsPPPipelineStableDiffusion": _INVERSION,
    "LEditsPPPipelineStableDiffusionXL": _INVERSION,
    "StableDiffusionDiffEditPipeline": _INVERSION,
    "StableDiffusionPix2PixZeroPipeline": _INVERSION,
    "StableDiffusionPanoramaPipeline": "calls its denoiser once for every view of a step, a schedule has one call",
    "StableDiffusionParadigmsPipeline": "gives rows timesteps of their own, a schedule has one timestep for all rows",
    "StableDiffusionLatentUpscalePipeline": "scales latents and outputs itself, apart from its scheduler",
    "RePaintPipeline": "goes back to earlier timesteps, in an order that no schedule holds",
    "VisualClozePipeline": "gives its tokens positions of its own, which a graph holds as constants",
    "VisualClozeGenerationPipeline": "gives its tokens positions of its own, which a graph holds as constants",
    "WanVideoToVideoPipeline": "calls its denoiser twice a step without naming the two calls (cache_context)",
}
"""Classes that a schedule cannot follow, and why."""

_FURTHER_ROWS = {
    "image_guidance_scale": (("none",), "guidance_scale=1"),
    "pag_scale": (("none", "concat"), "pag_scale=0"),
    "sld_guidance_scale": (("none", "concat"), "sld_guidance_scale=0"),
}
"""Arguments that add rows to every image by default, the layouts without these rows, and the call without them."""


def present_parts(index: Mapping[str, Any]) -> set[str]:
    """Names of the components that a ``model_index.json`` does not leave empty."""
    return {name for name, entry in index.items() if isinstance(entry, list) and any(entry)}


def check_pipeline(name: object, parts: Collection[str], index: Mapping[str, Any]) -> None:
    """Check that a schedule can hold the calls which a pipeline makes of its denoiser.

    Args:
        name: class name of the pipeline.
        parts: names of its components.
        index: its settings, as ``model_index.json`` has them.

    Raises:
        InputError: a schedule cannot, whatever the arguments of the call are.
    """
    for part, outputs in _SIDE_NETWORKS.items():
        if part in parts:
            _refuse(name, f"gives its denoiser {outputs}, for which a graph has no input")
    if reason := _REASONS.get(str(name)):
        _refuse(name, reason)
    if index.get("expand_timesteps") and "image" in str(name).lower():
        _refuse(name, "gives every token a timestep of its own, a schedule has one")


def _refuse(name: object, reason: str) -> None:
    raise InputError(
        f"{name} {reason}: use a pipeline of another class around the same denoiser, or load a copy of the denoiser's "
        "folder alone"
    )


def check_rows(name: object, defaults: Mapping[str, Any], guidance: str | None) -> None:
    """Check that a run has at most two rows an image.

    Args:
        name: class name of the pipeline.
        defaults: of the pipeline's call, by argument.
        guidance: the guidance layout, or None for that of the pipeline's default call.

    Raises:
        UsageError: the default call makes more rows, and no layout was chosen that turns them off.
    """
    for argument, (layouts, remedy) in _FURTHER_ROWS.items():
        if defaults.get(argument) and guidance not in layouts:
            raise UsageError(
                f"{name} makes three rows an image for its {argument}, a schedule holds one or two: choose guidance "
                f"{' or '.join(map(repr, layouts))}, and call the pipeline with {remedy}"
            )
