"""A denoiser with what a run needs beside it: scheduler config, class embedder, input conventions.

``sources`` says where one comes from; from Python, any ``nn.Module`` with example inputs will do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dipgo_deploy.core.contract import Guidance
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.models.presets import PRESETS, Preset

if TYPE_CHECKING:
    from dipgo_deploy.models.lora import LoraFile

__all__ = ["DTYPES", "LoadedModel", "canonical_config", "model_from_module", "usual_component"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
"""Dtypes that a model may be loaded in, by name."""


@dataclass(frozen=True)
class LoadedModel:
    """A denoiser ready to be traced or run.

    ``component`` is its folder name in a pipeline (``unet`` or ``transformer``); ``latent_shape`` is ``(C, H, W)``, or
    ``(C, F, H, W)`` with frames; ``text_tokens`` is the length of its text, None for what its family takes;
    ``class_embedder`` turns labels into cross-attention tokens, where the pipeline has one or prompts were given (see
    ``with_prompts``); ``guidance`` and ``steps`` are the usual ones, None where its pipeline tells (``usual_run``);
    ``text_loras`` are adapters that text encoders of ``folder``, by name, are to be used with (``text_loras``).
    """

    module: nn.Module
    class_name: str
    config: Mapping[str, Any]
    dtype: str
    folder: Path | None
    component: str
    scheduler_config: Mapping[str, Any]
    latent_shape: tuple[int, ...]
    preset: Preset
    class_embedder: Any = None
    text_tokens: int | None = None
    guidance: Guidance | None = None
    steps: int | None = None
    text_loras: Mapping[str, tuple[LoraFile, ...]] = field(default_factory=dict)

    @cached_property
    def digest(self) -> str:
        """sha256 over class, config and every tensor of the state dict in this dtype (on ``meta``, its shape alone)."""
        digest = hashlib.sha256(f"{self.class_name} {canonical_config(self.config)} {self.dtype}".encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}{' meta' * tensor.is_meta}".encode())
            if tensor.is_meta:
                continue
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def has_weights(self) -> bool:
        """False on the device ``meta``, where a model has shapes and takes no memory."""
        return not any(parameter.is_meta for parameter in self.module.parameters())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the state dict."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.module.state_dict().values())

    @property
    def num_classes(self) -> int | None:
        """Number of classes the model is conditioned on, or None; the label ``num_classes`` means no class."""
        if self.class_embedder is not None:
            return int(self.class_embedder.config["num_classes"])
        if "class_labels" not in self.example_inputs(1):
            return None
        return self.config.get("num_embeds_ada_norm") or self.config.get("num_class_embeds")

    @property
    def tokens(self) -> int:
        """Length of the cross-attention sequence."""
        if self.class_embedder is not None:
            return int(self.class_embedder.config["tokens"])
        return self.text_tokens or self.preset.tokens

    def example_inputs(self, rows: int) -> dict[str, torch.Tensor]:
        """Inputs of a forward by name, in call order, the latent first: always the same, floats in the model dtype."""
        with torch.random.fork_rng(devices=()), self._device():
            torch.manual_seed(0)
            inputs = self.preset.example(self.module, self.latent_shape, rows, self.tokens)
        return {name: self._cast(name, tensor) for name, tensor in inputs.items()}

    def as_dtype(self, dtype: str) -> LoadedModel:
        """A copy of the model in another dtype; the model itself if it has that one."""
        if dtype == self.dtype:
            return self
        return replace(self, module=_converted(self.module, DTYPES[dtype]), dtype=dtype)

    def with_latent_shape(self, shape: tuple[int, ...]) -> LoadedModel:
        """The same model on latents of another shape; whether it runs on them is seen when it is traced."""
        return self if shape == self.latent_shape else replace(self, latent_shape=shape)

    def _cast(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        keep = name == "timestep" or not tensor.is_floating_point()
        return tensor if keep else tensor.to(DTYPES[self.dtype])

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """The network's output ``(rows, C, H, W)``."""
        with self._device():
            return self.preset.forward(self.module, **inputs)

    def _device(self) -> AbstractContextManager[object]:
        """Where tensors are made that are asked for without a device."""
        return nullcontext() if self.has_weights else torch.device("meta")

    @torch.no_grad()
    def conditioning(self, classes: Sequence[int], guidance: Guidance) -> dict[str, np.ndarray]:
        """Conditioning inputs for one class label per image; under ``concat`` the unconditional rows come first.

        A model without class labels or embedder (a text model whose encoder is not loaded) gets standard normal
        conditioning seeded by the label, and zeros as the unconditional one. NumPy lacks bfloat16, whose rows are
        float32.
        """
        labels = torch.as_tensor(list(classes), dtype=torch.int64)
        count = self.num_classes
        if count is not None and (labels.min() < 0 or labels.max() >= count):
            raise UsageError(f"class labels must lie between 0 and {count - 1}, found {sorted(set(classes))}")
        names = [name for name in list(self.example_inputs(1))[1:] if name != "timestep"]
        given: dict[str, np.ndarray] = {}
        for name in names:
            pair = self._condition(name, labels)
            rows = torch.cat(pair) if guidance == "concat" else pair[1]
            cast = self._cast(name, rows)
            given[name] = (cast.float() if cast.dtype == torch.bfloat16 else cast).numpy()
        return given

    def _condition(self, name: str, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unconditional and conditional rows of one input."""
        null = torch.full_like(labels, self.num_classes or 0)
        if name == "class_labels":
            return null, labels
        if name == "encoder_hidden_states" and self.class_embedder is not None:
            return self.class_embedder(null), self.class_embedder(labels)
        example = self.example_inputs(1)[name]
        if name in self.preset.given:
            return (example.expand(len(labels), *example.shape[1:]),) * 2
        shape = example.shape[1:]
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(int(label))) for label in labels]
        return torch.zeros(len(labels), *shape), torch.stack(rows)


def canonical_config(config: Mapping[str, Any]) -> str:
    """JSON of a diffusers config without the private and machine-dependent entries, keys sorted."""
    return json.dumps({k: v for k, v in config.items() if not k.startswith("_")}, sort_keys=True, default=str)


def model_from_module(
    module: nn.Module,
    *,
    dtype: str = "float32",
    folder: Path | None = None,
    component: str | None = None,
    scheduler_config: Mapping[str, Any] | None = None,
    class_embedder: Any = None,
    preset: Preset | None = None,
    latent_shape: tuple[int, ...] | None = None,
    text_tokens: int | None = None,
    guidance: Guidance | None = None,
    steps: int | None = None,
) -> LoadedModel:
    """Wrap a live module. A class without a built-in preset needs ``preset``: its inputs, forward and latent shape.

    ``component`` is the module's folder in a pipeline, by default what diffusers calls one of its class;
    ``latent_shape`` and ``text_tokens`` stand above what config and preset say, ``guidance`` and ``steps`` above what
    pipelines of this class do unless a contract asks for others.
    """
    class_name = type(module).__name__
    known = preset or PRESETS.get(class_name)
    if known is None:
        raise InputError(f"{class_name} is no supported denoiser ({', '.join(PRESETS)}): pass a Preset for it")
    config = dict(getattr(module, "config", {}))
    module = nn.Module.to(module, DTYPES[dtype])  # copies nothing that has this dtype
    return LoadedModel(
        module=module.eval().requires_grad_(False),
        class_name=class_name,
        config=config,
        dtype=dtype,
        folder=folder,
        component=component or usual_component(class_name),
        scheduler_config=dict(scheduler_config or {}),
        latent_shape=latent_shape or _latent_shape(known, config, class_name),
        preset=known,
        class_embedder=class_embedder,
        text_tokens=text_tokens,
        guidance=guidance,
        steps=steps,
    )


def _converted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in ``dtype``, made without a copy in the module's own: both together are all the memory it takes."""
    known: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            other = tensor.detach().to(dtype)
            known[id(tensor)] = nn.Parameter(other, False) if isinstance(tensor, nn.Parameter) else other
    return deepcopy(module, known)


def _latent_shape(preset: Preset, config: Mapping[str, Any], class_name: str) -> tuple[int, ...]:
    try:
        return preset.latent_shape(config)
    except (KeyError, TypeError, ValueError):
        raise InputError(f"the config of this {class_name} gives no latent shape: set sample_size in it") from None


def usual_component(class_name: str) -> str:
    """What diffusers calls a denoiser of this class in a pipeline: ``unet`` or ``transformer``."""
    if class_name not in PRESETS:
        return "denoiser"
    return "unet" if class_name.startswith("UNet") else "transformer"
