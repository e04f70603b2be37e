"""Where a denoiser comes from, as the command line names it: a model, or an architecture with random weights."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dipgo_deploy.cli.latent_sizes import check_size_text, size_ranges
from dipgo_deploy.cli.options import token_range
from dipgo_deploy.cli.terminal import say
from dipgo_deploy.cli.units import mib_text
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.tensors import TOKENS

if TYPE_CHECKING:
    from dipgo_deploy.bundle import Bundle
    from dipgo_deploy.models import LoadedModel

__all__ = ["ModelSource", "open_bundle"]


@dataclass(frozen=True)
class ModelSource:
    """A model as the command line names it.

    Attributes:
        model: a name or path for ``load_model``.
        random_weights: an architecture for ``load_random``, instead of ``model``.
        dtype: number format of the network.
        meta: load shapes only.
        loras: adapters to fuse into the weights, as ``FILE[:SCALE]``.
        variant: variant of the weight files, such as ``fp16``.
        revision: branch, tag or commit of a hub name.
        config: architecture, if the keys of the checkpoint do not identify it.
        size: size of the latent as ``HEIGHTxWIDTH``, or a range as ``32x32..128x128``.
        tokens: lengths of the text sequence, as ``MIN-OPT-MAX`` or one length.

    Raises:
        UsageError: not exactly one source, or a malformed size.
    """

    model: str | None = None
    random_weights: str | None = None
    dtype: str = "float32"
    meta: bool = False
    loras: tuple[str, ...] = ()
    variant: str | None = None
    revision: str | None = None
    config: str | None = None
    size: str | None = None
    tokens: str | None = None

    def __post_init__(self) -> None:
        if self.model is not None and self.random_weights is not None:
            raise UsageError(f"MODEL is {self.model} and --random-weights {self.random_weights}: give one of them")
        if self.model is None and self.random_weights is None:
            raise UsageError("no model is named: give MODEL, or --random-weights CONFIG")
        for option in ("variant", "revision", "config"):
            if self.random_weights is not None and getattr(self, option) is not None:
                raise UsageError(f"--{option} is for weights that are loaded, not for random weights: leave it out")
        if self.size is not None:
            check_size_text(self.size)
        token_range(self.tokens)  # Refuses other text before the model is loaded.

    @property
    def label(self) -> str:
        """What is being loaded, for the progress display."""
        return self.model if self.model is not None else f"{self.random_weights} with random weights"

    def load(self) -> LoadedModel:
        """Load the model and print what was assumed about it. Raises the errors of the loaders.

        Random weights are left out if memory is too small.
        """
        from dipgo_deploy.models.input_shapes import with_sizes
        from dipgo_deploy.models.lora import with_loras
        from dipgo_deploy.models.lora_files import loras_from_texts

        loras, model = loras_from_texts(self.loras), self._without_loras()
        if loras and not model.has_weights:
            raise UsageError(f"{self.label} was loaded without weights, a LoRA needs them: leave --lora out")
        if self.size is not None:
            model = with_sizes(model, *size_ranges(self.size, model.latent_shape[-2:]))
        if (tokens := token_range(self.tokens)) is not None:
            if TOKENS not in model.sizes:
                raise UsageError(f"{self.label} takes no text: leave --tokens out")
            model = model.with_tokens(tokens)
        with warnings.catch_warnings(record=True) as left_out:
            warnings.simplefilter("always", UserWarning)
            model = with_loras(model, loras)
        for warning in left_out:
            if warning.category is UserWarning:
                say(f"warning: {warning.message}")
        for assumption in model.assumptions:
            say(f"assumed: {assumption}")
        return model

    def _without_loras(self) -> LoadedModel:
        from dipgo_deploy.models import load_model, load_random

        if self.random_weights is None:
            return load_model(
                str(self.model),
                dtype=self.dtype,
                variant=self.variant,
                revision=self.revision,
                config=self.config,
                meta=self.meta,
            )
        shapes = load_random(self.random_weights, dtype=self.dtype, device="meta")
        if self.meta or not _fits(self.label, shapes):
            return shapes
        return load_random(self.random_weights, dtype=self.dtype)


def open_bundle(
    folder: Path, own_model: str | None = None, *, whole: bool = False, trust_weights: bool = False
) -> Bundle:
    """Load a bundle, and the user's own model where one is named.

    Args:
        folder: the bundle.
        own_model: the exported model as ``package.module:attribute``.
        whole: hash every file now.
        trust_weights: check large files by size only.

    Returns:
        The bundle.

    Raises:
        UsageError: ``own_model`` is not a Python name.
    """
    from dipgo_deploy.bundle import load_bundle
    from dipgo_deploy.models.sources.python import is_python_name, model_from_python

    if own_model is None:
        return load_bundle(folder, whole=whole, trust_weights=trust_weights)
    if not is_python_name(own_model):
        raise UsageError(f"--model {own_model!r} is not the name of a Python object: give package.module:attribute")
    exported = model_from_python(own_model, "float32")
    bundle = load_bundle(folder, whole=whole, model=exported, trust_weights=trust_weights)
    bundle.model  # noqa: B018 - refuses another model now, not at its first use
    return bundle


def _fits(label: str, shapes: LoadedModel) -> bool:
    """Whether a trace of the model fits into the free memory. Prints a warning if not."""
    from dipgo_deploy.supernet.memory import TRACE_MEMORY, free_host_bytes

    needed, free = int(TRACE_MEMORY * shapes.weight_bytes), free_host_bytes()
    if needed > free:
        say(f"{label} needs {mib_text(needed)}, {mib_text(free)} are free: only shapes are traced, nothing can run")
    return needed <= free
