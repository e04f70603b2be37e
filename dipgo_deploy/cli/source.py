"""Where a denoiser comes from, as the command line names it: a model, or an architecture with random weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dipgo_deploy.cli.output import say
from dipgo_deploy.cli.units import mib_text
from dipgo_deploy.core.errors import UsageError

if TYPE_CHECKING:
    from dipgo_deploy.models import LoadedModel
    from dipgo_deploy.runtime import LoadedBundle

__all__ = ["ModelSource", "open_bundle"]

_SIZE = r"[1-9]\d{0,4}x[1-9]\d{0,4}"


@dataclass(frozen=True)
class ModelSource:
    """Either ``model`` (see ``load_model``) or ``random_weights`` (see ``load_random``), and a dtype.

    ``meta`` asks for shapes alone, ``loras`` are fused into the weights, ``size`` is that of the latent. Raises
    UsageError unless one source is given, or for a size that is none.
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

    def __post_init__(self) -> None:
        if self.model is not None and self.random_weights is not None:
            raise UsageError(f"MODEL is {self.model} and --random-weights {self.random_weights}: give one of them")
        if self.model is None and self.random_weights is None:
            raise UsageError("no model is named: give MODEL, or --random-weights CONFIG")
        for option in ("variant", "revision", "config"):
            if self.random_weights is not None and getattr(self, option) is not None:
                raise UsageError(f"--{option} belongs to weights that are loaded, not to random ones: leave it out")
        if self.size is not None and not re.fullmatch(_SIZE, self.size):
            raise UsageError(f"--size {self.size!r} is no size of a latent: give HEIGHTxWIDTH, such as 96x96")

    @property
    def label(self) -> str:
        """What is being loaded, for a line of progress."""
        return self.model if self.model is not None else f"{self.random_weights} with random weights"

    def load(self) -> LoadedModel:
        """The model, with whatever its loader raises; without weights where random ones would not fit the memory."""
        from dipgo_deploy.models.lora import with_loras
        from dipgo_deploy.models.lora_files import loras_from_texts

        loras, model = loras_from_texts(self.loras), self._without_loras()
        if loras and not model.has_weights:
            raise UsageError(f"{self.label} has shapes alone, a LoRA is fused into weights: leave --lora out")
        if self.size is not None:
            model = model.with_latent_shape((*model.latent_shape[:-2], *map(int, self.size.split("x"))))
        return with_loras(model, loras)

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


def open_bundle(folder: Path, own_model: str | None, *, whole: bool = False) -> LoadedBundle:
    """The bundle in ``folder``; ``own_model`` says as ``package.module:attribute`` which model was exported.

    Raises UsageError for a name that reads otherwise, and what the loaders of both raise.
    """
    from dipgo_deploy.models.sources.python import is_python_name, model_from_python
    from dipgo_deploy.runtime import load_bundle

    if own_model is None:
        return load_bundle(folder, whole=whole)
    if not is_python_name(own_model):
        raise UsageError(f"--model {own_model!r} names no Python object: give package.module:attribute")
    opened = load_bundle(folder, whole=whole, model=model_from_python(own_model, "float32"))
    opened.model  # noqa: B018 - refuses another model now, whatever is asked of the bundle
    return opened


def _fits(label: str, shapes: LoadedModel) -> bool:
    """Whether a trace of the model fits the free memory; says so where it does not."""
    from dipgo_deploy.supernet.memory import TRACE_MEMORY, free_host_bytes

    needed, free = int(TRACE_MEMORY * shapes.weight_bytes), free_host_bytes()
    if needed > free:
        say(f"{label} needs {mib_text(needed)}, {mib_text(free)} are free: shapes alone are traced, nothing can be run")
    return needed <= free
