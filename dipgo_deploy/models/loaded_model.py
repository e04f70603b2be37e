"""LoadedModel: a denoiser together with everything that a run needs.

The sources in ``dipgo_deploy.models.sources`` make one LoadedModel from files, hub, Python or a live module.
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
from typing import Any

import numpy as np
import torch
from torch import nn

from dipgo_deploy.core.contract import Guidance
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.models.lora_files import LoraFile
from dipgo_deploy.models.presets import Preset

__all__ = ["DTYPES", "LoadedModel", "canonical_config", "check_dtype"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16, "float64": torch.float64}
"""Dtypes that a model may be loaded in, by name."""


@dataclass(frozen=True)
class LoadedModel:
    """A denoiser ready to be traced or run.

    Attributes:
        module: the network, in eval mode and without gradients.
        class_name: its class. A diffusers class has a built-in preset.
        config: its config as diffusers records it.
        dtype: a name of DTYPES.
        folder: the folder that it was loaded from, or None.
        component: its name in a pipeline, ``unet`` or ``transformer``.
        scheduler_config: the pipeline's scheduler config, empty if the pipeline has none.
        latent_shape: the latent of one image, ``(C, H, W)``, or ``(C, F, H, W)`` with frames.
        preset: block patterns and forward of the class.
        class_embedder: turns labels into cross-attention tokens. It comes from the pipeline, or from prompts.
        text_tokens: length of the text sequence. None means the preset's length.
        guidance: guidance layout of an ordinary run. None means the pipeline's default.
        steps: number of steps of an ordinary run. None means the pipeline's default.
        text_loras: LoRA adapters for the pipeline's text encoders, by component name.
        assumptions: what the source did not say and was therefore assumed, one sentence each, with the option that
            changes it. Commands print them.
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
    assumptions: tuple[str, ...] = ()

    def __repr__(self) -> str:
        source = "" if self.folder is None else f", from {str(self.folder)!r}"
        weights = f"{self.weight_bytes / 2**20:.1f} MiB" if self.has_weights else "no weights"
        return f"LoadedModel({self.class_name}, {self.dtype}, {weights}, latent {self.latent_shape}{source})"

    @cached_property
    def digest(self) -> str:
        """sha256 over class, config, dtype and every tensor of the state dict. On ``meta`` only shapes are hashed."""
        digest = hashlib.sha256(f"{self.class_name} {canonical_config(self.config)} {self.dtype}".encode())
        for name, tensor in sorted(self.module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}{' meta' * tensor.is_meta}".encode())
            if tensor.is_meta:
                continue
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def has_weights(self) -> bool:
        """False on the device ``meta``, on which a model has shapes but no data."""
        return not any(parameter.is_meta for parameter in self.module.parameters())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the state dict."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.module.state_dict().values())

    @property
    def num_classes(self) -> int | None:
        """Number of classes that the model is conditioned on, or None. The label ``num_classes`` means no class."""
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

    @cached_property
    def latent_name(self) -> str:
        """Name of the input that is the latent: the first of the preset's example. The module's own may differ."""
        return next(iter(self.example_inputs(1)))

    def example_inputs(self, rows: int) -> dict[str, torch.Tensor]:
        """Inputs of a forward by name, in call order, the latent first.

        The numbers are always the same. Floats have the model's dtype, except for the timestep.
        """
        with torch.random.fork_rng(devices=()), self._device():
            torch.manual_seed(0)
            inputs = self.preset.example(self.module, self.latent_shape, rows, self.tokens)
        return {name: self._cast(name, tensor) for name, tensor in inputs.items()}

    def as_dtype(self, dtype: str) -> LoadedModel:
        """A copy of the model in another dtype, or the model itself if it already has that dtype."""
        if dtype == self.dtype:
            return self
        return replace(self, module=_converted(self.module, DTYPES[dtype]), dtype=dtype)

    def with_latent_shape(self, shape: tuple[int, ...]) -> LoadedModel:
        """The same model on latents of another shape. The trace fails if the model does not accept the shape."""
        return self if shape == self.latent_shape else replace(self, latent_shape=shape)

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        """The network's output ``(rows, C, H, W)``."""
        with self._device():
            return self.preset.forward(self.module, **inputs)

    @torch.no_grad()
    def conditioning(self, classes: Sequence[int], guidance: Guidance) -> dict[str, np.ndarray]:
        """Conditioning inputs for one class label per image.

        A text model whose encoder is not loaded gets standard normal conditioning, seeded by the label. Its
        unconditional rows are zeros. NumPy has no bfloat16, so rows of a bfloat16 model are float32.

        Args:
            classes: one label per image.
            guidance: under ``concat`` the unconditional rows come before the conditional rows.

        Returns:
            Every network input but latent and timestep, by name.

        Raises:
            UsageError: a label is not a class of the model.
        """
        labels = torch.as_tensor(list(classes), dtype=torch.int64)
        count = self.num_classes
        if count is not None and (labels.min() < 0 or labels.max() >= count):
            raise UsageError(f"class labels must lie between 0 and {count - 1}, got {sorted(set(classes))}")
        inputs: dict[str, np.ndarray] = {}
        for name in list(self.example_inputs(1))[1:]:
            if name == "timestep":
                continue
            unconditional, conditional = self._condition(name, labels)
            rows = torch.cat([unconditional, conditional]) if guidance == "concat" else conditional
            cast = self._cast(name, rows)
            inputs[name] = (cast.float() if cast.dtype == torch.bfloat16 else cast).numpy()
        return inputs

    def _condition(self, name: str, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Unconditional and conditional rows of one input."""
        null = torch.full_like(labels, self.num_classes or 0)
        if name == "class_labels":
            return null, labels
        if name == "encoder_hidden_states" and self.class_embedder is not None:
            return self.class_embedder(null), self.class_embedder(labels)
        example = self.example_inputs(1)[name]
        if name in self.preset.constant_inputs:
            return (example.expand(len(labels), *example.shape[1:]),) * 2
        shape = example.shape[1:]
        rows = [torch.randn(shape, generator=torch.Generator().manual_seed(int(label))) for label in labels]
        return torch.zeros(len(labels), *shape), torch.stack(rows)

    def _cast(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        # bfloat16 has 8 significant bits: timesteps above 256 would be rounded.
        keep = name == "timestep" or not tensor.is_floating_point()
        return tensor if keep else tensor.to(DTYPES[self.dtype])

    def _device(self) -> AbstractContextManager[object]:
        """The default device of new tensors: ``meta`` for a model without weights."""
        return nullcontext() if self.has_weights else torch.device("meta")


def canonical_config(config: Mapping[str, Any]) -> str:
    """JSON of a diffusers config with sorted keys, without private and machine-dependent entries."""
    return json.dumps({k: v for k, v in config.items() if not k.startswith("_")}, sort_keys=True, default=str)


def check_dtype(dtype: str) -> None:
    """Raise UsageError unless ``dtype`` is a name of DTYPES."""
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is unknown: choose {', '.join(DTYPES)}")


def _converted(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of ``module`` in ``dtype``.

    deepcopy meets the converted tensors in its memo, so there is never a copy in the old dtype. Peak memory is one
    module in each dtype.
    """
    memo: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            converted = tensor.detach().to(dtype)
            memo[id(tensor)] = nn.Parameter(converted, False) if isinstance(tensor, nn.Parameter) else converted
    return deepcopy(module, memo)
