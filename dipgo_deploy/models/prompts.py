"""Prompts as the conditioning of a search: each is encoded once, by the pipeline's own tokenizer and text encoder.

What comes out is a table in the place of a class embedder, so that whatever draws images by label draws them by prompt.
The denoiser is untouched: its digest, and every contract made of it, are those of the model without prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.models.loading import LoadedModel
from dipgo_deploy.models.pipeline_folder import component_names, load_text_encoder, load_tokenizer, running
from dipgo_deploy.models.text_loras import fuse_text_loras

__all__ = ["PromptTable", "with_prompts"]

_INPUT = "encoder_hidden_states"


class PromptTable(nn.Module):
    """Turn the number of a prompt into its tokens.

    Args:
        rows: tokens of every prompt, the empty one last, (prompts + 1, tokens, dim).
    """

    def __init__(self, rows: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("rows", rows)
        self.config = {"num_classes": len(rows) - 1, "tokens": rows.shape[1]}
        """As a class embedder's: the label ``num_classes`` is the empty prompt."""

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """Tokens (B, tokens, dim) of ``labels`` (B,), each in ``0..num_classes``, both ends included."""
        rows: torch.Tensor = self.get_buffer("rows")[labels]
        return rows


def with_prompts(model: LoadedModel, prompts: Sequence[str]) -> LoadedModel:
    """A copy of ``model`` whose label i means ``prompts[i]``, and no label the empty prompt.

    A prompt that is too long for the encoder is cut, as diffusers does. Raises UsageError where there is no prompt or
    the model is conditioned on something else, InputError where its folder has not the one text encoder that fits it,
    MissingError where transformers is absent.
    """
    if not prompts:
        raise UsageError("no prompt is given, one or more are wanted: name some")
    _check_conditioned_on_text(model)
    rows = _encoded(model, _pipeline(model), (*prompts, ""))
    found, wanted = rows.shape[-1], model.example_inputs(1)[_INPUT].shape[-1]
    if found != wanted:
        raise InputError(
            f"the text encoder of {model.folder} gives tokens of width {found}, its {model.class_name} takes {wanted}: "
            "use the pipeline that they were trained in"
        )
    return replace(model, class_embedder=PromptTable(rows))


def _check_conditioned_on_text(model: LoadedModel) -> None:
    names = [name for name in list(model.example_inputs(1))[1:] if name != "timestep"]
    by_class = model.class_embedder is not None and not isinstance(model.class_embedder, PromptTable)
    if by_class or "class_labels" in names:
        raise UsageError(f"this {model.class_name} is conditioned on class numbers, found prompts: give numbers")
    if names != [_INPUT]:
        found = ", ".join(names) or "nothing"
        raise UsageError(f"prompts become {_INPUT}, this {model.class_name} takes {found}: search it without prompts")


def _pipeline(model: LoadedModel) -> Path:
    """The model's folder, if it is a pipeline with one text encoder."""
    folder = model.folder
    names = component_names(folder) if folder and (folder / "model_index.json").is_file() else ()
    found = [name for name in names if name.startswith("text_encoder")]
    if folder is None or found != ["text_encoder"]:
        raise InputError(
            f"prompts need a pipeline folder with one text_encoder, {folder or 'a module'} has "
            f"{' and '.join(found) or 'none'}: use another model, or search without prompts"
        )
    return folder


def _encoded(model: LoadedModel, folder: Path, prompts: Sequence[str]) -> torch.Tensor:
    """Last hidden states (prompts, tokens, dim), one prompt at a time: together they may not fit the memory."""
    tokenizer = load_tokenizer(folder)
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes one of a folder without vocabulary
        raise InputError(f"{folder / 'tokenizer'} holds no vocabulary, one is wanted: restore its files")
    encoder, tokens = load_text_encoder(folder)
    fuse_text_loras(model, "text_encoder", encoder)
    with running(folder, "text_encoder"), torch.no_grad():
        return torch.cat([_hidden(encoder, tokenizer, prompt, tokens) for prompt in prompts])


def _hidden(encoder: Any, tokenizer: Any, prompt: str, tokens: int) -> torch.Tensor:
    """What diffusers' text pipelines hand to the denoiser; the mask counts only where the encoder's config says so."""
    given = tokenizer(prompt, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt")
    mask = given.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    hidden: torch.Tensor = encoder(input_ids=given.input_ids, attention_mask=mask).last_hidden_state
    return hidden
