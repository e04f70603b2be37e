"""How a diffusers pipeline calls its denoiser, as far as the denoiser's own config does not say.

1. The folder's ``model_index.json`` names the class of the pipeline. Defaults of its call come from its signature.
2. A few facts are written only in the code of a pipeline. They are listed here by class. A test compares the list with
   real calls (``model_from_pipeline``).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dipgo_deploy.core.disk import read_json
from dipgo_deploy.models.pipeline_class import BASE_PIPELINE, pipeline_class
from dipgo_deploy.models.presets.inputs import Input

__all__ = ["PipelineCall", "pipeline_defaults", "read_pipeline_call"]

_INDEX = "model_index.json"

_IMAGE_FIRST = ("MarigoldDepthPipeline", "MarigoldIntrinsicsPipeline", "MarigoldNormalsPipeline")
"""Pipelines that put the channels of their image before the channels of the latent."""

_EMPTY_PROMPT = 2
"""Tokens of the empty prompt that these pipelines encode without padding."""

_REFERENCE = ("FluxKontextPipeline", "FluxKontextInpaintPipeline")
"""Pipelines that append the tokens of a reference image to the tokens of the latent."""

_WITHOUT_TEXT = ("AudioLDMPipeline", "MusicLDMPipeline")
"""Pipelines whose text is a class vector alone, although their denoiser has cross-attention layers."""

_CLIP_TOKENS = 77
"""Tokens of the CLIP encoders that Stable Diffusion 3 puts before those of its third encoder."""


@dataclass(frozen=True)
class PipelineCall:
    """What a pipeline passes to its denoiser.

    Attributes:
        pipeline: class name of the pipeline. None if unknown.
        image_first: whether extra channels come before the latent's channels.
        reference: whether tokens of a reference image follow the latent's tokens (FLUX Kontext).
        pooled_width: width of the pooled text embedding. None if unknown.
        is_image_text: whether one token of an image's encoder stands in place of the text.
        image_tokens: tokens of the pipeline's image encoder, with its class token. None if unknown.
        has_aesthetic_score: whether time ids end with an aesthetic score (the refiner of SDXL).
        recorded: conditioning inputs of a real call, which replace those of the preset. None removes an input.
    """

    pipeline: str | None = None
    image_first: bool = False
    reference: bool = False
    pooled_width: int | None = None
    is_image_text: bool = False
    image_tokens: int | None = None
    has_aesthetic_score: bool = False
    recorded: Mapping[str, Input | None] = field(default_factory=dict)

    @classmethod
    def of(cls, pipeline: str | None, **facts: Any) -> PipelineCall:
        """The call of a pipeline class by its name, with further fields."""
        without = {"encoder_hidden_states": None} if pipeline in _WITHOUT_TEXT else {}
        return cls(pipeline, pipeline in _IMAGE_FIRST, pipeline in _REFERENCE, recorded=without, **facts)

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
        image_tokens=_image_tokens(home),
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


def _image_tokens(folder: Path) -> int | None:
    """Tokens of a CLIP image encoder: a square of patches and the class token."""
    path = folder / "image_encoder" / "config.json"
    config = read_json(path) if path.is_file() else {}
    size, patch = (config.get(name) for name in ("image_size", "patch_size"))
    return (size // patch) ** 2 + 1 if isinstance(size, int) and isinstance(patch, int) and patch > 0 else None
