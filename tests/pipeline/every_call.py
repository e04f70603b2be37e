"""Tiny pipelines of every class and their default calls.

A call has the class's own defaults. Given are required inputs (prompt, images), sizes and the number of steps, which
would otherwise take long, and the form of the output.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from dipgo_deploy.core.contract import Guidance
from tests.pipeline.every_class import annotation, call_names, constructor, denoiser_class, pipeline_classes
from tests.pipeline.every_denoiser import tiny_denoiser
from tests.pipeline.every_part import PARTS, part
from tests.pipeline.every_rare_part import WIDTH

__all__ = ["SIDE", "STEPS", "Row", "arguments", "flat", "rows", "save"]

STEPS = 4
"""Steps of every call. Image-to-image skips most steps by default, so fewer would leave none."""

SIDE = 16
"""Side of an image in pixels. The VAE halves it."""


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        cls: the pipeline's class.
        kind: which checkpoint or call of the class, empty for the usual one.
        options: constructor arguments that are not parts.
        call: arguments that differ from the default call.
        guidance: the layout that such a call needs, None for that of the default call.
    """

    cls: type
    kind: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    guidance: Guidance | None = None

    @property
    def name(self) -> str:
        """The class's name, with the kind of checkpoint."""
        return self.cls.__name__ + (f" ({self.kind})" if self.kind else "")


_TWO = {"options": {"boundary_ratio": 0.5}}
_WITHOUT_PAG = ("pag_scale=0", {"call": {"pag_scale": 0.0}, "guidance": "concat"})
_WITHOUT_TEXT = ("guidance_scale=1", {"call": {"guidance_scale": 1.0}, "guidance": "none"})

_MORE: Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]] = {
    "StableDiffusionXLImg2ImgPipeline": [("refiner", {"options": {"requires_aesthetics_score": True}})],
    "StableDiffusionPipeline": [("with safety checker", {})],
    "StableDiffusionInpaintPipeline": [("4 channels", {})],
    "StableDiffusionXLInpaintPipeline": [("4 channels", {})],
    "PixArtAlphaPipeline": [("1024", {})],
    "FluxPipeline": [("schnell", {})],
    "WanPipeline": [("2.2, two transformers", _TWO), ("2.2, 5B", {"options": {"expand_timesteps": True}})],
    "WanImageToVideoPipeline": [
        ("2.2, two transformers", _TWO), ("2.2, 5B", {"options": {"expand_timesteps": True}})
    ],
    "StableDiffusionPAGPipeline": [_WITHOUT_PAG],
    "StableDiffusionXLPAGPipeline": [_WITHOUT_PAG],
    "StableDiffusion3PAGPipeline": [_WITHOUT_PAG],
    "PixArtSigmaPAGPipeline": [_WITHOUT_PAG],
    "StableDiffusionInstructPix2PixPipeline": [_WITHOUT_TEXT],
    "StableDiffusionXLInstructPix2PixPipeline": [_WITHOUT_TEXT],
    "StableDiffusionPipelineSafe": [
        ("sld_guidance_scale=0", {"call": {"sld_guidance_scale": 0.0}, "guidance": "concat"})
    ],
}  # fmt: skip
"""Further checkpoints of a class, and calls that a refusal of the default call names."""

_MARIGOLD = {"default_denoising_steps": STEPS, "default_processing_resolution": SIDE}
_CLOZE_OPTIONS = {"resolution": SIDE}
_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(("MarigoldDepthPipeline", "MarigoldIntrinsicsPipeline", "MarigoldNormalsPipeline"), _MARIGOLD),
    **dict.fromkeys(("VisualClozePipeline", "VisualClozeGenerationPipeline"), _CLOZE_OPTIONS),
}
"""Constructor arguments that checkpoints of a class have."""


def rows() -> list[Row]:
    """Every class, and further checkpoints of some."""
    table = []
    for name, cls in pipeline_classes().items():
        table.append(Row(cls, options=_OPTIONS.get(name, {})))
        table += [Row(cls, kind, **fields) for kind, fields in _MORE.get(name, ())]
    return table


def save(row: Row, folder: Path) -> tuple[str, ...]:
    """Save a tiny pipeline of random weights.

    Args:
        row: the row.
        folder: the new folder.

    Returns:
        The classes of parts that nothing builds. With such a part only the denoisers are saved.
    """
    parts = {name: _part(row, name, parameter) for name, parameter in constructor(row.cls).items()}
    if missing := tuple(value.kind for value in parts.values() if isinstance(value, _Missing)):
        _save_denoisers(row, folder)
        return missing
    given = {name: value for name, value in parts.items() if value is not _OMIT}
    row.cls(**given, **row.options).save_pretrained(folder)
    return ()


def _save_denoisers(row: Row, folder: Path) -> None:
    """Save the denoisers alone, and name the other parts."""
    index: dict[str, Any] = {"_class_name": row.cls.__name__}
    for name, parameter in constructor(row.cls).items():
        denoiser = denoiser_class(parameter)
        if denoiser is not None:
            tiny_denoiser(denoiser, row.name).save_pretrained(folder / name)
        if denoiser is not None or parameter.default is parameter.empty:
            index[name] = ["diffusers", denoiser or annotation(parameter)[0]]
    (folder / "model_index.json").write_text(json.dumps(index))


@dataclass(frozen=True)
class _Missing:
    kind: str


_OMIT = object()
_NO_CHECKER = {"safety_checker": None, "requires_safety_checker": False, "watermarker": None, "add_watermarker": False}


def _part(row: Row, name: str, parameter: Any) -> Any:
    """A part, None for a part that the checkpoints lack, or _OMIT for the constructor's default."""
    if name == "safety_checker" and "checker" in row.kind:
        return part("StableDiffusionSafetyChecker", name, row.cls)
    if name in _NO_CHECKER:
        return _NO_CHECKER[name]
    denoiser, kinds = denoiser_class(parameter), annotation(parameter)
    if denoiser is not None:
        is_second = name.endswith("_2")
        return _OMIT if is_second and "two" not in row.kind else tiny_denoiser(denoiser, row.name, int(is_second))
    if name == "feature_extractor" and not (_has_pictures(row.cls) or "checker" in row.kind):
        return None
    is_optional = parameter.default is not parameter.empty
    if is_optional and not (name in _PICTURES and row.cls.__name__ == "WanImageToVideoPipeline"):
        return _OMIT
    if name in _PICTURES and kinds[-1] == "None":
        return None
    return part(kinds[0], name, row.cls) if kinds[0] in PARTS else _Missing(kinds[0])


_PICTURES = ("image_encoder", "image_processor")
"""Parts that are optional in most classes, because only IP adapters need them."""


def _has_pictures(cls: type) -> bool:
    """Whether every checkpoint of a class has a network that looks at pictures."""
    encoder = constructor(cls).get("image_encoder")
    needs = encoder is not None and encoder.default is encoder.empty and annotation(encoder)[-1] != "None"
    return needs or "depth_estimator" in constructor(cls)


def _image(side: int = SIDE) -> Any:
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return PIL.Image.fromarray(pixels)


def _mask(side: int = SIDE) -> Any:
    pixels = np.zeros((side, side), np.uint8)
    pixels[side // 4 : side // 2, side // 4 : side // 2] = 255
    return PIL.Image.fromarray(pixels)


def _tensor(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def _inputs(cls: type) -> dict[str, Any]:
    """What a call may need, by the argument's name."""
    name = cls.__name__
    side = _SIDES.get(name, SIDE)
    sized = any(family in name for family in ("Flux", "Kandinsky", "Wan", "Lucy", "Panorama", "Blip"))
    large = 32 if any(family in name for family in ("Wan", "Lucy")) else SIDE
    frames = [_image(large) for _ in range(5)]
    embedded, texts = _tensor(1, WIDTH), _tensor(1, 512, WIDTH)
    is_wan = large > SIDE
    return {
        "num_inference_steps": STEPS, "prior_num_inference_steps": 2, "decoder_num_inference_steps": 2,
        "super_res_num_inference_steps": 2, "prompt": None if is_wan else "a cat", "source_prompt": "a dog",
        "image": _image(large if is_wan else side), "mask_image": _mask(side), "control_image": _image(),
        "example_image": _image(), "video": frames, "conditioning_frames": frames, "reference_image": _image(),
        "original_image": _image(), "class_labels": [3] if name == "DiTPipeline" else None, "num_frames": 5,
        "image_embeds": embedded if name.startswith("Kandinsky") else None, "negative_image_embeds": -embedded,
        "hint": _tensor(1, 3, 64, 64), "control_mask": _mask(),
        "height": large if sized else None, "width": large if sized else None, "output_type": "np",
        "generator": torch.Generator().manual_seed(5),
        "prompt_embeds": texts if is_wan else None, "negative_prompt_embeds": -texts if is_wan else None,
    }  # fmt: skip


_SIDES = dict.fromkeys(("LDMSuperResolutionPipeline", "RePaintPipeline"), 32) | {
    "StableDiffusionLatentUpscalePipeline": 64
}
"""Sides of images, where a class rounds sizes down to a larger multiple."""

_CLOZE = {"image": [[_image(), _image()], [_image(), None]], "task_prompt": "a task", "content_prompt": "a cat"}

_CLASS_CALLS: Mapping[str, Mapping[str, Any]] = {
    "StableDiffusionPanoramaPipeline": {"height": 512, "width": 576},
    "StableDiffusionGLIGENPipeline": {"gligen_phrases": ["a cat"], "gligen_boxes": [[0.0, 0.0, 0.5, 0.5]]},
    "FluxKontextPipeline": {"max_area": SIDE**2, "_auto_resize": False},
    "FluxKontextInpaintPipeline": {"max_area": SIDE**2, "_auto_resize": False},
    "VisualClozePipeline": _CLOZE,
    "VisualClozeGenerationPipeline": _CLOZE,
    "RePaintPipeline": {"jump_length": 1, "jump_n_sample": 1},
}


def arguments(row: Row) -> dict[str, Any]:
    """The arguments of a row's call, with a fresh generator."""
    known = call_names(row.cls)
    given = {name: value for name, value in _inputs(row.cls).items() if name in known and value is not None}
    return given | dict(_CLASS_CALLS.get(row.cls.__name__, {})) | dict(row.call)


def flat(output: Any) -> np.ndarray:
    """All numbers of a pipeline's output, as one float64 vector."""
    return np.concatenate([*_numbers(output)]) if output is not None else np.zeros(0)


def _numbers(value: Any) -> list[np.ndarray]:
    if isinstance(value, Mapping):
        return [part for item in value.values() for part in _numbers(item)]
    if isinstance(value, PIL.Image.Image):
        return [np.asarray(value, np.float64).ravel() / 255]
    if isinstance(value, torch.Tensor):
        return [value.detach().double().numpy().ravel()]
    if isinstance(value, np.ndarray):
        return [value.astype(np.float64).ravel()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [part for item in value for part in _numbers(item)]
    return []
