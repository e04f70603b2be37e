"""Where a denoiser comes from, as the command line names it: a model, or an architecture with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dipgo_deploy.core.errors import UsageError

if TYPE_CHECKING:
    from dipgo_deploy.models import LoadedModel

__all__ = ["ModelSource"]


@dataclass(frozen=True)
class ModelSource:
    """Either ``model`` (see ``load_model``) or ``random_weights`` (see ``load_random``), and a dtype.

    Raises UsageError unless one of them is given.
    """

    model: str | None = None
    random_weights: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.model is not None and self.random_weights is not None:
            raise UsageError(f"MODEL is {self.model} and --random-weights {self.random_weights}: give one of them")
        if self.model is None and self.random_weights is None:
            raise UsageError("no model is named: give MODEL, or --random-weights CONFIG")

    @property
    def label(self) -> str:
        """What is being loaded, for a line of progress."""
        return self.model or f"{self.random_weights} with random weights"

    def load(self) -> LoadedModel:
        """The model, with whatever its loader raises."""
        from dipgo_deploy.models import load_model, load_random

        if self.random_weights is not None:
            return load_random(self.random_weights, dtype=self.dtype)
        return load_model(str(self.model), dtype=self.dtype)
