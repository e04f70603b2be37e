"""LoadedModel: a denoiser together with everything that a run needs.

The sources in ``dipgo_deploy.models.sources`` make one LoadedModel from files, hub, Python or a live module.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dipgo_deploy.core.contract import Contract, Guidance
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.program import TIMESTEP
from dipgo_deploy.core.tensors import HEIGHT, TOKENS, WIDTH, SizeRange
from dipgo_deploy.models.cast import DTYPES, cast_copy, check_dtype
from dipgo_deploy.models.identity import Behaviour, behaviour_of, check_copy
from dipgo_deploy.models.identity.live import latent_argument
from dipgo_deploy.models.lora_files import LoraFile
from dipgo_deploy.models.network_inputs import (
    at_latent,
    at_length,
    conditioning_rows,
    free_axes,
    inputs_of_example,
    latent_sides,
    size_ranges,
)
from dipgo_deploy.models.presets import PRESETS, Input, Network, PipelineCall, Preset, read_pipeline_call
from dipgo_deploy.models.presets.inputs import JOINED
from dipgo_deploy.models.weights_digest import WeightsDigest, canonical_config

__all__ = ["DTYPES", "LoadedModel", "check_dtype"]


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
        text_tokens: usual length of the text sequence. None means the preset's length.
        ranges: ranges of free sizes that differ from the default, by symbol. See ``sizes``.
        guidance: guidance layout of an ordinary run. None means the pipeline's default.
        steps: number of steps of an ordinary run. None means the pipeline's default.
        text_loras: LoRA adapters for the pipeline's text encoders, by component name.
        call: how the pipeline calls the network. None reads it from the folder.
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
    ranges: Mapping[str, SizeRange] = field(default_factory=dict)
    guidance: Guidance | None = None
    steps: int | None = None
    text_loras: Mapping[str, tuple[LoraFile, ...]] = field(default_factory=dict)
    call: PipelineCall | None = None
    assumptions: tuple[str, ...] = ()

    def __repr__(self) -> str:
        source = "" if self.folder is None else f", from {str(self.folder)!r}"
        weights = f"{self.weight_bytes / 2**20:.1f} MiB" if self.has_weights else "no weights"
        return f"LoadedModel({self.class_name}, {self.dtype}, {weights}, latent {self.latent_shape}{source})"

    @property
    def digest(self) -> str:
        """sha256 over class, config, dtype, every tensor of the state dict and the behaviour, as they are now.

        A module as its class makes it has no behaviour. On ``meta`` only shapes are hashed.
        """
        behaviour = self.behaviour
        if not behaviour:
            return self.weights_digest
        return hashlib.sha256(f"{self.weights_digest} {behaviour.digest}".encode()).hexdigest()

    @property
    def weights_digest(self) -> str:
        """The digest without behaviour."""
        header = f"{self.class_name} {canonical_config(self.config)} {self.dtype}"
        return self._weights.digest(header, self.module.state_dict())

    @cached_property
    def _weights(self) -> WeightsDigest:
        return WeightsDigest()

    def has_digest(self, digest: str) -> bool:
        """Whether a digest is the model's.

        Older versions did not count the code of classes without a shipped preset, so their digests are accepted too.
        """
        return digest == self.digest or (self.class_name not in PRESETS and digest == self.weights_digest)

    @property
    def behaviour(self) -> Behaviour:
        """What the module does now besides what its class, config and weights say, and a forward of the user's own."""
        return behaviour_of(self.module, self.preset.forward)

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
        return next((entry.classes for entry in self.inputs.values() if entry.classes is not None), None)

    @property
    def tokens(self) -> int:
        """Usual length of the text sequence. Prompts do not change it."""
        if self._has_labels:
            return int(self.class_embedder.config["tokens"])
        return self.text_tokens or self.pipeline_call.tokens or self.preset.tokens

    @cached_property
    def pipeline_call(self) -> PipelineCall:
        """How the model's pipeline calls the network, as far as it is known."""
        return read_pipeline_call(self.folder) if self.call is None else self.call

    @cached_property
    def inputs(self) -> Mapping[str, Input]:
        """The conditioning inputs by name, in call order."""
        if self.preset.example is not None or self.preset.inputs is None:
            with torch.random.fork_rng(devices=()):
                example = self._example(1)
            own = inputs_of_example(example, self.config, self.preset.constant_inputs)
        else:
            own = self.preset.inputs(Network(self.config, self.latent_shape, self.tokens, self.pipeline_call))
        every = {**own, **self.pipeline_call.recorded}
        present = {name: entry for name, entry in every.items() if entry is not None}
        tokens = None if self._has_labels else self.text_tokens
        return at_length(at_latent(present, self.latent_shape), self.preset.axes, tokens)

    @property
    def axes(self) -> Mapping[str, Mapping[int, str]]:
        """Symbols of the free axes of inputs, besides the rows. The latent is among them where its size is free."""
        axes = dict(free_axes(self.inputs, self.preset.axes))
        if sides := latent_sides(self.latent_shape, self.ranges):
            axes |= {name: sides for name in (self.latent_name, *JOINED) if name in (self.latent_name, *self.inputs)}
        return axes

    @cached_property
    def sizes(self) -> Mapping[str, SizeRange]:
        """The range of every symbol that the inputs have.

        Text may have up to MOST_TOKENS tokens, unless ``ranges`` says otherwise. Class labels always become the same
        number of tokens.
        """
        axes = free_axes(self.inputs, self.preset.axes)
        return size_ranges(self.inputs, axes, self.ranges, fixed=self._has_labels)

    @property
    def _has_labels(self) -> bool:
        """Whether the text is that of class labels, whose length never changes."""
        return self.class_embedder is not None and not self.class_embedder.config.get("is_text")

    def with_tokens(self, tokens: SizeRange) -> LoadedModel:
        """The same model for other lengths of the text sequence."""
        return replace(self, text_tokens=tokens.opt, ranges={**self.ranges, TOKENS: tokens})

    def at_sizes(self, sizes: Mapping[str, int]) -> LoadedModel:
        """The same model with inputs of other sizes, by symbol."""
        sides = (sizes.get(name, own) for name, own in zip((HEIGHT, WIDTH), self.latent_shape[-2:], strict=True))
        shape = (*self.latent_shape[:-2], *sides)
        return replace(self, text_tokens=sizes.get(TOKENS, self.text_tokens), latent_shape=shape)

    @cached_property
    def latent_name(self) -> str:
        """Name of the input that is the latent: the first of the preset's example. The module's own may differ."""
        return next(iter(self.example_inputs(1)))

    def example_inputs(self, rows: int) -> dict[str, torch.Tensor]:
        """Inputs of a forward by name, in call order, the latent first.

        The numbers are always the same. Floats have the model's dtype, except for the timestep.
        """
        inputs = {} if self.preset.example is not None else self.inputs
        with torch.random.fork_rng(devices=()), self._device():
            torch.manual_seed(0)
            if self.preset.example is not None:
                examples = self._example(rows)
            else:
                latent = latent_argument(self.module)
                examples = {latent: torch.randn(rows, *self.latent_shape), TIMESTEP: torch.full((rows,), 500.0)}
            examples |= {name: entry.example(rows) for name, entry in inputs.items()}
        return {name: self._cast(name, tensor) for name, tensor in examples.items()}

    def _example(self, rows: int) -> dict[str, torch.Tensor]:
        assert self.preset.example is not None
        return self.preset.example(self.module, self.latent_shape, rows, self.tokens)

    def as_dtype(self, dtype: str) -> LoadedModel:
        """A copy of the model in another dtype, or the model itself if it already has that dtype."""
        if dtype == self.dtype:
            return self
        return self.copied(dtype)

    def copied(self, dtype: str) -> LoadedModel:
        """A copy with a module of its own.

        Args:
            dtype: of the copy.

        Returns:
            The copy.

        Raises:
            UsageError: the module's own behaviour refers to the module itself, so that a copy would run the original.
        """
        copy = replace(self, module=cast_copy(self.module, DTYPES[dtype]), dtype=dtype)
        check_copy(self.class_name, dtype, self.behaviour, copy.behaviour)
        return copy

    def with_latent_shape(self, shape: tuple[int, ...]) -> LoadedModel:
        """The same model on latents of another shape. The trace fails if the model does not accept the shape."""
        ranges = {name: size for name, size in self.ranges.items() if name not in (HEIGHT, WIDTH)}
        is_same = (shape, ranges) == (self.latent_shape, self.ranges)
        return self if is_same else replace(self, latent_shape=shape, ranges=ranges)

    def for_contract(self, contract: Contract) -> LoadedModel:
        """The same model with the latent shape and the free sizes of a contract."""
        model = self.with_latent_shape(contract.latent_shape)
        tokens = contract.tokens.opt if contract.tokens is not None else self.text_tokens
        return replace(model, ranges={**model.ranges, **contract.ranges}, text_tokens=tokens)

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
        rows = conditioning_rows(self.inputs, labels, guidance == "concat", self.class_embedder)
        cast = {name: self._cast(name, tensor) for name, tensor in rows.items()}
        return {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in cast.items()}

    def _cast(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        # bfloat16 has 8 significant bits: timesteps above 256 would be rounded.
        keep = name == "timestep" or not tensor.is_floating_point()
        return tensor if keep else tensor.to(DTYPES[self.dtype])

    def _device(self) -> AbstractContextManager[object]:
        """The default device of new tensors: ``meta`` for a model without weights."""
        return nullcontext() if self.has_weights else torch.device("meta")
