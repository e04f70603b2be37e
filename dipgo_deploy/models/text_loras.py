"""The part of LoRA adapters that belongs to text encoders: fused into copies, never into the pipeline's own folder.

What encodes prompts in a search gets it, and so do the text encoders that a bundle takes along, so that the bundle's
pipeline draws what the adapted one draws.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dipgo_deploy.core.errors import InputError, first_line
from dipgo_deploy.models.loading import LoadedModel
from dipgo_deploy.models.lora import LoraFile, lora_loader, read_lora
from dipgo_deploy.models.pipeline_folder import load_module, running
from dipgo_deploy.models.quiet import quiet_diffusers

__all__ = ["fuse_text_loras", "save_text_encoder"]

_ADAPTER = "lora"


def fuse_text_loras(model: LoadedModel, name: str, encoder: Any) -> None:
    """Fuse what the model's adapters hold for its text encoder ``name`` into the module ``encoder``, in place.

    Raises InputError where a file does not fit it; the module is then of no use.
    """
    for lora in model.text_loras.get(name, ()):
        try:
            with quiet_diffusers():
                _fuse(model, lora, name, encoder)
        except InputError:
            raise
        except Exception as error:
            line = first_line(error)
            raise InputError(f"{lora.path} cannot be fused into this {name} ({line}): use its own") from None


def save_text_encoder(model: LoadedModel, name: str, folder: Path) -> None:
    """Write the model's text encoder ``name`` with its adapters fused to ``folder``, in the dtype that it is kept in.

    Raises InputError as above, MissingError where transformers is absent.
    """
    if model.folder is None:
        raise AssertionError("adapters of text encoders are kept for models of a pipeline folder alone")
    with running(model.folder, name) as (kind, home):
        encoder = load_module(kind, home, "auto")
        fuse_text_loras(model, name, encoder)
        encoder.save_pretrained(folder)


def _fuse(model: LoadedModel, lora: LoraFile, name: str, encoder: Any) -> None:
    from diffusers.loaders.lora_base import (  # noqa: TID251 - the home of diffusers
        _remove_text_encoder_monkey_patch,
        fuse_text_encoder_lora,
    )

    state, alphas = read_lora(model, lora.path)
    part = {key: tensor for key, tensor in state.items() if key.startswith(f"{name}.")}
    lora_loader(model).load_lora_into_text_encoder(
        part, network_alphas=alphas, text_encoder=encoder, prefix=name, adapter_name=_ADAPTER
    )
    made = sum(".lora_A." in parameter for parameter, _ in encoder.named_parameters())
    if 2 * made != len(part):
        raise InputError(f"{lora.path} adapts layers that this {name} lacks: use a LoRA that was made for it")
    fuse_text_encoder_lora(encoder, lora.scale, safe_fusing=True)
    _remove_text_encoder_monkey_patch(encoder)
    encoder.requires_grad_(False)
