"""Prompts as the conditioning of a search. The pipeline's own tokenizer and text encoder encode each prompt once.

The result is a table that replaces a class embedder, so all code that draws images by label can draw by prompt. The
denoiser does not change: digest and contracts are those of the model without prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.models.loaded_model import LoadedModel
from dipgo_deploy.models.pipeline_folder import component_names, load_text_encoder, load_tokenizer, using_component
from dipgo_deploy.models.text_loras import fuse_text_loras

__all__ = ["PromptTable", "with_prompts"]

_INPUT = "encoder_hidden_states"


class PromptTable(nn.Module):
    """Turns the number of a prompt into its tokens.

    Args:
        rows: tokens of every prompt, (prompts + 1, tokens, dim). The last row belongs to the empty prompt.
        note: which prompts were cut, empty if all are whole.
    """

    def __init__(self, rows: torch.Tensor, note: str = "") -> None:
        super().__init__()
        self.note = note
        self.register_buffer("rows", rows)
        self.config = {"num_classes": len(rows) - 1, "tokens": rows.shape[1], "is_text": True}
        """Keys of a class embedder, and that these are texts. The label ``num_classes`` is the empty prompt."""

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """Tokens (B, tokens, dim) of ``labels`` (B,), each from 0 to ``num_classes`` inclusive."""
        rows: torch.Tensor = self.get_buffer("rows")[labels]
        return rows


def with_prompts(model: LoadedModel, prompts: Sequence[str]) -> LoadedModel:
    """Condition a model on prompts: label i means ``prompts[i]``, and the null label means the empty prompt.

    Args:
        model: a model of a pipeline folder with one text encoder.
        prompts: at least one. A prompt that is too long for the encoder is cut, as in diffusers. The table's ``note``
            says so.

    Returns:
        A copy of the model with a PromptTable as its class embedder.

    Raises:
        UsageError: there is no prompt, or the model is not conditioned on text.
        InputError: the folder does not have exactly one text encoder, or the encoder does not fit the model.
        MissingError: transformers is not installed.
    """
    if not prompts:
        raise UsageError("there is no prompt: give at least one")
    _check_conditioned_on_text(model)
    rows, note = _encoded(model, _pipeline(model), (*prompts, ""))
    width, expected = rows.shape[-1], model.example_inputs(1)[_INPUT].shape[-1]
    if width != expected:
        raise InputError(
            f"the text encoder of {model.folder} gives tokens of width {width}, but its {model.class_name} takes "
            f"{expected}: use the pipeline that both were trained in"
        )
    return replace(model, class_embedder=PromptTable(rows, note))


def _check_conditioned_on_text(model: LoadedModel) -> None:
    # Guidance weights, noise levels and sizes have defaults. A second text, an image and the text's mask do not.
    names = [name for name, entry in model.inputs.items() if entry.value is None or name.endswith("mask")]
    by_class = model.class_embedder is not None and not isinstance(model.class_embedder, PromptTable)
    if by_class or "class_labels" in names:
        raise UsageError(f"this {model.class_name} is conditioned on class numbers, not on prompts: give numbers")
    if names != [_INPUT]:
        inputs = ", ".join(names) or "nothing"
        raise UsageError(f"prompts become {_INPUT}, but this {model.class_name} takes {inputs}: search without prompts")


def _pipeline(model: LoadedModel) -> Path:
    """The model's folder, checked to be a pipeline with one text encoder."""
    folder = model.folder
    names = component_names(folder) if folder and (folder / "model_index.json").is_file() else ()
    encoders = [name for name in names if name.startswith("text_encoder")]
    if folder is None or encoders != ["text_encoder"]:
        raise InputError(
            f"prompts need a pipeline folder with one text_encoder, but {folder or 'a module'} has "
            f"{' and '.join(encoders) or 'none'}: use another model, or search without prompts"
        )
    return folder


def _encoded(model: LoadedModel, folder: Path, prompts: Sequence[str]) -> tuple[torch.Tensor, str]:
    """Last hidden states (prompts, tokens, dim), and a note about prompts that are cut.

    Prompts are encoded one by one, because a batch might not fit memory.
    """
    tokenizer = load_tokenizer(folder)
    # transformers makes a tokenizer even from a folder without a vocabulary.
    if len(tokenizer) <= len(tokenizer.all_special_tokens):
        raise InputError(f"{folder / 'tokenizer'} holds no vocabulary: restore its files")
    encoder, tokens = load_text_encoder(folder)
    fuse_text_loras(model, "text_encoder", encoder)
    with using_component(folder, "text_encoder"), torch.no_grad():
        rows = torch.cat([_hidden(encoder, tokenizer, prompt, tokens) for prompt in prompts])
    return rows, _cut_note(tokenizer, prompts, tokens)


def _cut_note(tokenizer: Any, prompts: Sequence[str], tokens: int) -> str:
    """Which prompts are longer than ``tokens``, empty if none is."""
    lengths = {prompt: len(tokenizer(prompt, verbose=False).input_ids) for prompt in prompts}
    long = [prompt for prompt in prompts if lengths[prompt] > tokens]
    if not long:
        return ""
    return (
        f"{len(long)} of {len(prompts) - 1} prompts are longer than the {tokens} tokens that the text encoder takes, "
        f"and are cut as in diffusers: the first has {len(long[0].split())} words and {lengths[long[0]]} tokens "
        f"({long[0][:40]!r}…)"
    )


def _hidden(encoder: Any, tokenizer: Any, prompt: str, tokens: int) -> torch.Tensor:
    """Hidden states as diffusers' text pipelines compute them. The mask is used only if the config says so."""
    batch = tokenizer(prompt, padding="max_length", max_length=tokens, truncation=True, return_tensors="pt")
    mask = batch.attention_mask if getattr(encoder.config, "use_attention_mask", False) else None
    hidden: torch.Tensor = encoder(input_ids=batch.input_ids, attention_mask=mask).last_hidden_state
    return hidden
