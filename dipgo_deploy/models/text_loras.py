"""The part of LoRA adapters that belongs to text encoders.

It is fused into copies, never into the pipeline's own folder: into the encoder of a search's prompts, and into the text
encoders that a bundle contains. So the bundle's pipeline draws what the adapted pipeline draws.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from dipgo_deploy.core.errors import InputError, first_line
from dipgo_deploy.models.loaded_model import LoadedModel
from dipgo_deploy.models.lora_files import LoraFile, lora_loader, read_lora
from dipgo_deploy.models.pipeline_folder import load_module, using_component
from dipgo_deploy.models.suppress_logging import suppress_diffusers_logging

__all__ = ["fuse_text_loras", "save_text_encoder"]

_ADAPTER = "lora"


def fuse_text_loras(model: LoadedModel, name: str, encoder: Any) -> None:
    """Fuse the model's adapters for one text encoder into its module, in place.

    Args:
        model: the model, whose ``text_loras`` name the files.
        name: the text encoder's component name.
        encoder: its module.

    Raises:
        InputError: a file does not fit the encoder. The module must then be discarded.
    """
    for lora in model.text_loras.get(name, ()):
        try:
            with suppress_diffusers_logging(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # PEFT warns about layers of the denoiser in the config.
                _fuse(model, lora, name, encoder)
        except InputError:
            raise
        except Exception as error:
            line = first_line(error)
            raise InputError(f"{lora.path} cannot be fused into this {name} ({line}): use its own") from None


def save_text_encoder(model: LoadedModel, name: str, folder: Path) -> None:
    """Save a text encoder of the model's pipeline with its adapters fused, in the dtype of its file.

    Args:
        model: the model, loaded from a pipeline folder.
        name: the text encoder's component name.
        folder: the folder to save to.

    Raises:
        InputError: a file does not fit the encoder, or the encoder cannot be loaded.
        MissingError: transformers is not installed.
    """
    if model.folder is None:
        raise AssertionError("only models of a pipeline folder have adapters of text encoders")
    with using_component(model.folder, name) as (component_class, home):
        encoder = load_module(component_class, home, "auto")
        fuse_text_loras(model, name, encoder)
        encoder.save_pretrained(folder)


def _fuse(model: LoadedModel, lora: LoraFile, name: str, encoder: Any) -> None:
    from diffusers.loaders.lora_base import (  # noqa: TID251 - the home of diffusers
        _remove_text_encoder_monkey_patch,
        fuse_text_encoder_lora,
    )
    from diffusers.utils.state_dict_utils import (  # noqa: TID251 - the home of diffusers
        StateDictType,
        convert_state_dict_to_diffusers,
    )

    adapter = read_lora(lora.path, model.class_name, model.config)
    # diffusers recognizes these names only beside an adapted to_out, and otherwise leaves the layers out.
    tensors = convert_state_dict_to_diffusers(adapter.part(name), StateDictType.DIFFUSERS_OLD)
    tensors = {f"{name}.{key}": tensor for key, tensor in tensors.items()}
    lora_loader(model.class_name).load_lora_into_text_encoder(
        tensors,
        network_alphas=None,
        metadata=adapter.config,
        text_encoder=encoder,
        prefix=name,
        adapter_name=_ADAPTER,
    )
    # PEFT ignores tensors without a layer: every first factor of the file makes one layer with a lora_A.
    layers = sum(".lora_A." in parameter for parameter, _ in encoder.named_parameters())
    if layers != sum(".lora_A." in key or ".down." in key for key in tensors):
        raise InputError(f"{lora.path} adapts layers that this {name} lacks: use a LoRA that was made for it")
    fuse_text_encoder_lora(encoder, lora.scale, safe_fusing=True)
    _remove_text_encoder_monkey_patch(encoder)
    encoder.requires_grad_(False)
