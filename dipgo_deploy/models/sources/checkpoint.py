"""What kind of model a checkpoint in one file is: told by the names and shapes of its tensors.

1. A file of something else, such as a LoRA or a VAE, is refused by name.
2. A file with diffusers' names is a shipped config if all names and shapes are those of the config.
3. diffusers recognizes files with original names by one tensor each. It takes any other file for Stable Diffusion 1,
   so this answer counts only for files whose names are those of Stable Diffusion.
4. Whatever the kind, names and shapes after diffusers' conversion must be those of the config.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.errors import InputError, UsageError, first_line
from dipgo_deploy.models.sources.random import instantiate, read_random_config, shipped_configs
from dipgo_deploy.models.sources.safetensors_header import Header

__all__ = ["check_denoiser", "check_fits", "published_config", "recognized_config"]

_LDM = "model.diffusion_model."
_SD2_WIDTH = 1024
_LACKS = "it lacks weights that the config requires"

_CONFIGS = {
    "v1": "sd15",
    "v2": "sd21",
    "xl_base": "sdxl",
    "sd3": "sd3-medium",
    "sd35_medium": "sd35-medium",
    "sd35_large": "sd35-large",
    "flux-dev": "flux-dev",
    "flux-schnell": "flux-schnell",
    "wan-t2v-1.3B": "wan2.1-1.3b",
}
"""The shipped config of each kind of checkpoint that diffusers recognizes by its keys."""

_LORA = r"\.lora_(A|B|up|down)\b|\.(hada_w1_a|lokr_w1)$|lora\d?\.(up|down)\.weight$"

_OTHERS = {
    r"^(controlnet_cond_embedding|control_model|controlnet_\w+|input_hint_block)\.": "a ControlNet: give a denoiser",
    r"motion_modules\.": "a motion module: give a denoiser",
    r"^(image_proj|ip_adapter)\.": "an IP-Adapter: give a denoiser",
    r"^(emb_params|clip_[lg]|<.*>)$": "a textual inversion: give a denoiser",
    r"^(first_stage_model\.|vae\.)?(decoder|encoder)\.(conv_in|conv1|mid_block|mid|middle)\.": "a VAE: give a denoiser",
    r"^((te?xt_?\w*|cond_stage_model|conditioner|text_encoders?)\.)*(text_model|shared|token_embedding|encoder\.block|"
    r"embed_tokens|model\.embed_tokens|model\.layers|embeddings|encoder\.layers)\.": "a text encoder: give a denoiser",
}
"""Files that are no denoiser, by a pattern of one of their tensors' names. Checked unless there are a denoiser's."""

_CLASSES: Mapping[str, tuple[str, ...]] = {
    "FluxTransformer2DModel": (r"single_transformer_blocks\.0\.proj_out\.weight", r"x_embedder\.weight"),
    "SD3Transformer2DModel": (r"transformer_blocks\.0\.attn\.add_k_proj\.weight", r"pos_embed\.proj\.weight"),
    "WanTransformer3DModel": (r"condition_embedder\.time_proj\.weight", r"patch_embedding\.weight"),
    "PixArtTransformer2DModel": (r"adaln_single\.linear\.weight", r"caption_projection\.linear_1\.weight"),
    "DiTTransformer2DModel": (r"transformer_blocks\.0\.norm1\.emb\.class_embedder\.embedding_table\.weight",),
    "UNet2DConditionModel": (r"conv_in\.weight", r"time_embedding\.linear_1\.weight", r".*\.attn2\.to_k\.weight"),
    "UNet2DModel": (r"conv_in\.weight", r"time_embedding\.linear_1\.weight", r"conv_norm_out\.weight"),
}
"""Patterns of tensors that a class has under diffusers' names. The first class that has them all is meant."""


def check_denoiser(path: Path, header: Header) -> None:
    """Raise InputError, with the kind of the file, for a file that has nothing of a denoiser."""
    if any(re.search(_LORA, name) for name in header.shapes):
        raise InputError(f"{path} is a LoRA: give the model that it was made for, and this file as lora")
    if any(name.startswith(_LDM) for name in header.shapes):
        return
    for pattern, title in _OTHERS.items():
        if any(re.search(pattern, name) for name in header.shapes):
            raise InputError(f"{path} is {title}")


def published_config(header: Header, denoiser: Mapping[str, Any]) -> str:
    """The shipped config whose pipeline a file on a config of the user's own is most like.

    Args:
        header: the file's header. Original names tell the kind.
        denoiser: the denoiser's config. It decides if the names tell nothing.

    Returns:
        A name for ``read_random_config``.
    """
    kind = _kind(header)
    if kind in _CONFIGS and read_random_config(_CONFIGS[kind]).denoiser["_class_name"] == denoiser["_class_name"]:
        return _CONFIGS[kind]
    if denoiser["_class_name"] == "UNet2DConditionModel":
        is_xl, width = denoiser.get("addition_embed_type") == "text_time", denoiser.get("cross_attention_dim")
        return "sdxl" if is_xl else "sd21" if width == _SD2_WIDTH else "sd15"
    if denoiser["_class_name"] == "FluxTransformer2DModel":
        return "flux-dev" if denoiser.get("guidance_embeds") else "flux-schnell"
    return {"SD3Transformer2DModel": "sd3-medium", "WanTransformer3DModel": "wan2.1-1.3b"}[denoiser["_class_name"]]


def _kind(header: Header) -> str | None:
    """Name that diffusers gives to the kind of a file with original names. None if it does not know the file."""
    from diffusers.loaders.single_file_utils import (  # noqa: TID251 - the home of diffusers
        infer_diffusers_model_type,
    )

    if _diffusers_class(header) is not None:
        return None
    try:
        kind = str(infer_diffusers_model_type(header.on_meta()))
    except Exception:  # diffusers looks up further tensors of the kind that it supposes
        return None
    is_sd1 = any(name.startswith((f"{_LDM}input_blocks.", f"{_LDM}output_blocks.")) for name in header.shapes)
    return None if kind == "v1" and not is_sd1 else kind


def recognized_config(path: Path, header: Header) -> str:
    """The shipped config that a file fits.

    Args:
        path: the file, for the message.
        header: its header.

    Returns:
        A name for ``read_random_config``.

    Raises:
        InputError: the file is no denoiser, or of an architecture that does not ship.
        UsageError: diffusers cannot load this class from a single file.
    """
    class_name = _diffusers_class(header)
    if class_name is not None:
        return _config_of_shapes(path, header, class_name)
    kind = _kind(header)
    if kind is None:
        first = next(iter(header.shapes))
        raise InputError(f"{path} is of an unknown kind, its first tensor is {first}: give a folder or config")
    if kind not in _CONFIGS:
        raise InputError(f"{path} is a checkpoint of {kind}, known are {', '.join(_CONFIGS)}: give a folder or config")
    return _CONFIGS[kind]


def check_fits(path: Path, header: Header, denoiser: Mapping[str, Any]) -> nn.Module:
    """Check that a file, converted by diffusers, has the names and shapes of a config.

    Args:
        path: the file, for the message.
        header: its header.
        denoiser: the denoiser's config, its class included.

    Returns:
        The config's module on the device meta.

    Raises:
        InputError: a tensor is missing, of another shape, or of a layer that the config lacks.
    """
    module = instantiate(denoiser, torch.float32, device="meta")
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    try:
        found = _converted_shapes(header, denoiser, wanted)
        reason = _difference(found, wanted)
    except (KeyError, IndexError):
        reason = _LACKS
    except Exception as error:
        reason = first_line(error)
    if reason:
        raise InputError(
            f"{path} cannot be loaded as {denoiser['_class_name']} ({reason}): give its config.json as config"
        )
    return module


def _diffusers_class(header: Header) -> str | None:
    for class_name, patterns in _CLASSES.items():
        if all(any(re.fullmatch(pattern, name) for name in header.shapes) for pattern in patterns):
            return class_name
    return None


def _config_of_shapes(path: Path, header: Header, class_name: str) -> str:
    import diffusers  # noqa: TID251 - the home of diffusers

    if not hasattr(getattr(diffusers, class_name), "from_single_file"):
        raise UsageError(f"diffusers cannot load a {class_name} from a single file: give its folder")
    names = [name for name in shipped_configs() if read_random_config(name).denoiser["_class_name"] == class_name]
    for name in names:
        module = instantiate(read_random_config(name).denoiser, torch.float32, device="meta")
        if {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()} == header.shapes:
            return name
    raise InputError(
        f"{path} cannot be loaded as {class_name} (its names are those of diffusers, its sizes not those of "
        f"{' or '.join(names)}): give its config.json as config"
    )


def _converted_shapes(
    header: Header, denoiser: Mapping[str, Any], wanted: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    from diffusers.loaders.single_file_model import (  # noqa: TID251 - the home of diffusers
        SINGLE_FILE_LOADABLE_CLASSES,
    )

    if header.shapes.keys() == wanted.keys():
        return dict(header.shapes)
    convert: Any = SINGLE_FILE_LOADABLE_CLASSES[denoiser["_class_name"]]["checkpoint_mapping_fn"]
    converted = convert(checkpoint=header.on_meta(), config=dict(denoiser))
    return {name: tuple(tensor.shape) for name, tensor in converted.items()}


def _difference(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str:
    """The first difference in words. "" if all wanted tensors are there and no layer is left over."""
    for name, shape in wanted.items():
        if name not in found:
            return _LACKS
        if found[name] != shape:
            return f"{name} is {found[name]} instead of {shape}"
    extra = next((name for name in found if name not in wanted and "blocks." in name), None)
    return f"it has {extra}, which the config lacks" if extra else ""
