"""Contract: what a schedule was made for and a bundle may be run with. All that comes after trace refers to it.

Versions of installed packages, for the records that artifacts and measurements carry.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, Literal

from dipgo_deploy.core.errors import InputError

__all__ = ["BatchRange", "Contract", "Guidance", "SamplerSpec", "check_same_contract", "installed_versions"]


Guidance = Literal["none", "concat"]
"""``concat``: rows are the unconditional batch followed by the conditional one. ``none``: one row an image."""


@dataclass(frozen=True)
class SamplerSpec:
    """A diffusers scheduler as configured: its class, its config as canonical JSON and one timestep per network call.

    ``steps`` is the number passed to ``set_timesteps``; ``timesteps`` may be longer (PNDM and Heun repeat some).
    """

    class_name: str
    config: str
    steps: int
    timesteps: tuple[float, ...]

    @property
    def calls(self) -> int:
        """Number of network calls of the full run; a step of a schedule is one of them."""
        return len(self.timesteps)

    @property
    def config_dict(self) -> dict[str, Any]:
        """The scheduler's config."""
        config: dict[str, Any] = json.loads(self.config)
        return config

    @property
    def digest(self) -> str:
        """sha256 over class, config and timesteps."""
        text = json.dumps([self.class_name, self.config, self.steps, self.timesteps])
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class BatchRange:
    """Numbers of images per call that engines are built for."""

    min: int = 1
    opt: int = 4
    max: int = 64


@dataclass(frozen=True)
class Contract:
    """Model, sampler, guidance layout, latent shape, batch range and dtype; ``versions`` is a record.

    ``latent_shape`` is that of one image, ``(C, H, W)``, or with frames ``(C, F, H, W)``.
    """

    model_class: str
    model_digest: str
    dtype: str
    sampler: SamplerSpec
    guidance: Guidance
    latent_shape: tuple[int, ...]
    batch: BatchRange = BatchRange()
    versions: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def rows_per_image(self) -> int:
        """Rows of the network's batch per image: 2 under concatenated guidance."""
        return 2 if self.guidance == "concat" else 1

    def guidance_scale(self, asked: float | None) -> float:
        """The scale of a run: as asked, else 2 under guidance and 1 without."""
        if asked is not None:
            return asked
        return 2.0 if self.guidance == "concat" else 1.0

    def sizes(self, batch: int) -> dict[str, int]:
        """Values of the symbols in a TensorSpec's shape for ``batch`` images."""
        return {"batch": batch, "rows": batch * self.rows_per_image}


def check_same_contract(wanted: Contract, found: Contract, what: str) -> None:
    """Raise InputError naming the first field in which ``found`` differs from ``wanted`` (versions excepted)."""
    for name in ("model_class", "model_digest", "dtype", "sampler", "guidance", "latent_shape"):
        ours, theirs = getattr(wanted, name), getattr(found, name)
        if ours != theirs:
            raise InputError(f"{what} was made for {name} {_brief(theirs)}, but {_brief(ours)} is wanted: make it anew")


def _brief(value: object) -> str:
    if isinstance(value, SamplerSpec):
        return f"{value.class_name} with {value.calls} calls (config {value.digest[:12]})"
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Version of each distribution of ``names`` that is installed; nothing is imported."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
