"""How a diffusers pipeline calls its denoiser, as far as the denoiser's own config does not say.

1. The folder's ``model_index.json`` names the class of the pipeline. Defaults of its call come from its signature.
2. A few facts are written only in the code of a pipeline. They are listed here by class. A test compares the list with
   real calls (``model_from_pipeline``).
3. Pipelines that give their denoiser what a schedule has no place for are refused by name.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dipgo_deploy.core.disk import read_json
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.models.pipeline_class import BASE_PIPELINE, pipeline_class
from dipgo_deploy.models.presets.inputs import Input

__all__ = ["PipelineCall", "check_pipeline", "pipeline_defaults", "read_pipeline_call"]

_INDEX = "model_index.json"

_IMAGE_FIRST = ("MarigoldDepthPipeline", "MarigoldIntrinsicsPipeline", "MarigoldNormalsPipeline")
"""Pipelines that put the channels of their image before the channels of the latent."""

_EMPTY_PROMPT = 2
"""Tokens of the empty prompt that these pipelines encode without padding."""

_REFERENCE = ("FluxKontextPipeline", "FluxKontextInpaintPipeline")
"""Pipelines that append the tokens of a reference image to the tokens of the latent."""

_OWN_SCALING = ("StableDiffusionLatentUpscalePipeline",)
"""Pipelines that scale the network's input and output themselves, apart from their scheduler."""

_CLIP_TOKENS = 77
"""Tokens of the CLIP encoders that Stable Diffusion 3 puts before those of its third encoder."""

_SIDE_NETWORKS = {
    "controlnet": "the residuals of a ControlNet",
    "adapter": "the residuals of a T2I-Adapter",
    "motion_adapter": "a motion adapter",
}
"""Components whose outputs a pipeline adds inside its denoiser."""


_THIRD_ROW = {
    "image_guidance_scale": (("none",), "guidance_scale=1"),
    "pag_scale": (("none", "concat"), "pag_scale=0"),
}
"""Arguments that add a third row to every image by default, the layouts without that row, and the call without it."""


@dataclass(frozen=True)
class PipelineCall:
    """What a pipeline passes to its denoiser.

    Attributes:
        pipeline: class name of the pipeline. None if unknown.
        image_first: whether extra channels come before the latent's channels.
        reference: whether tokens of a reference image follow the latent's tokens (FLUX Kontext).
        pooled_width: width of the pooled text embedding. None if unknown.
        is_image_text: whether one token of an image's encoder stands in place of the text.
        has_aesthetic_score: whether time ids end with an aesthetic score (the refiner of SDXL).
        recorded: conditioning inputs of a real call, which replace those of the preset. None removes an input.
    """

    pipeline: str | None = None
    image_first: bool = False
    reference: bool = False
    pooled_width: int | None = None
    is_image_text: bool = False
    has_aesthetic_score: bool = False
    recorded: Mapping[str, Input | None] = field(default_factory=dict)

    @classmethod
    def of(cls, pipeline: str | None, **facts: Any) -> PipelineCall:
        """The call of a pipeline class by its name, with further fields."""
        return cls(pipeline, pipeline in _IMAGE_FIRST, pipeline in _REFERENCE, **facts)

    @property
    def tokens(self) -> int | None:
        """Length of the text sequence, if the pipeline's call says it: ``max_sequence_length``."""
        if self.is_image_text or self.pipeline in _IMAGE_FIRST:
            return 1 if self.is_image_text else _EMPTY_PROMPT
        length = self.default("max_sequence_length")
        if not isinstance(length, int):
            return None
        return length + (_CLIP_TOKENS if "prompt_3" in (pipeline_defaults(self.pipeline) or {}) else 0)

    def default(self, argument: str, otherwise: Any = None) -> Any:
        """The default of an argument of the pipeline's call, or ``otherwise``."""
        value = (pipeline_defaults(self.pipeline) or {}).get(argument)
        return otherwise if value is None or value is inspect.Parameter.empty else value


def pipeline_defaults(name: str | None) -> Mapping[str, Any] | None:
    """Defaults of the arguments of a pipeline's call.

    Args:
        name: class name of the pipeline.

    Returns:
        The default of every argument by name. None if diffusers has no such pipeline, and nothing for the plain
        ``DiffusionPipeline``.
    """
    if name == BASE_PIPELINE:
        return {}
    pipeline = pipeline_class(name)
    if pipeline is None:
        return None
    return {argument.name: argument.default for argument in inspect.signature(pipeline.__call__).parameters.values()}


def read_pipeline_call(folder: Path | None) -> PipelineCall:
    """How the pipeline of a folder calls its denoiser. Without ``model_index.json`` nothing is known.

    Args:
        folder: the pipeline's folder, or the folder of its denoiser.

    Returns:
        The facts that the folder gives.

    Raises:
        InputError: a file is not JSON.
    """
    home, index = _index(folder)
    if home is None:
        return PipelineCall()
    name = index.get("_class_name")
    return PipelineCall.of(
        name if isinstance(name, str) else None,
        pooled_width=_pooled_width(home),
        is_image_text="image_encoder" in index and "tokenizer" not in index,
        has_aesthetic_score=bool(index.get("requires_aesthetics_score")),
    )


def _index(folder: Path | None) -> tuple[Path | None, Mapping[str, Any]]:
    """The pipeline's folder and its ``model_index.json``. The folder of a denoiser may lie in its pipeline's folder."""
    if folder is None:
        return None, {}
    if (folder / _INDEX).is_file():
        return folder, read_json(folder / _INDEX)
    home = folder.absolute().parent
    index = read_json(home / _INDEX) if (home / _INDEX).is_file() else {}
    return (home, index) if folder.name in index else (None, {})


def _pooled_width(folder: Path) -> int | None:
    """Width of the pooled text of SDXL's second text encoder."""
    config = folder / "text_encoder_2" / "config.json"
    width = read_json(config).get("projection_dim") if config.is_file() else None
    return width if isinstance(width, int) else None


def check_pipeline(folder: Path | None, guidance: str | None) -> None:
    """Check that a schedule has a place for what the pipeline of a folder gives its denoiser.

    Args:
        folder: of the pipeline.
        guidance: the guidance layout, or None for that of the pipeline's default call.

    Raises:
        UsageError: the pipeline adds another network's outputs inside the denoiser, scales latents itself, or makes
            more than two rows an image.
    """
    home, index = _index(folder)
    name = index.get("_class_name")
    for part, outputs in _SIDE_NETWORKS.items():
        if home == folder and any(index.get(part) or ()):
            raise UsageError(
                f"{name} gives its denoiser {outputs}, for which a graph has no input: give the denoiser's own folder"
            )
    if name in _OWN_SCALING:
        raise UsageError(f"{name} scales latents and outputs itself, which no schedule holds: use another pipeline")
    if index.get("expand_timesteps") and "image" in (pipeline_defaults(name) or {}):
        raise UsageError(f"{name} gives every token a timestep of its own, a schedule has one: use a model without")
    defaults = pipeline_defaults(name if isinstance(name, str) else None) or {}
    for argument, (layouts, remedy) in _THIRD_ROW.items():
        if defaults.get(argument) and guidance not in layouts:
            raise UsageError(
                f"{name} makes three rows an image for its {argument}, a schedule holds one or two: choose guidance "
                f"{' or '.join(map(repr, layouts))}, and call the pipeline with {remedy}"
            )
