"""Contract: the model, sampler and shapes for which a schedule was made and with which a bundle may run.

Every artifact after the trace refers to a contract. Artifacts and measurements also record versions of installed
packages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from types import MappingProxyType
from typing import Any, Literal

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.tensors import FREE_SIZES, HEIGHT, WIDTH, Dim, SizeRange

__all__ = [
    "BatchRange",
    "Contract",
    "Guidance",
    "SamplerSpec",
    "check_contract",
    "check_same_contract",
    "installed_versions",
]


Guidance = Literal["none", "concat"]
"""``concat``: the unconditional batch followed by the conditional batch. ``none``: one row per image."""


def _refuse_constant(text: str) -> None:
    """NaN and Infinity are no JSON, although Python reads them."""
    raise ValueError(text)


@dataclass(frozen=True)
class SamplerSpec:
    """A diffusers scheduler as configured: its class, its config as canonical JSON and one timestep per network call.

    Attributes:
        class_name: the scheduler class.
        config: the scheduler's config as canonical JSON.
        steps: the number passed to ``set_timesteps``.
        timesteps: one entry per network call. PNDM and Heun repeat timesteps, so there may be more than ``steps``.
    """

    class_name: str
    config: str
    steps: int
    timesteps: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check that the config is a JSON object. A ValueError names the field when a document is read."""
        try:
            config = json.loads(self.config, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            config = None
        if not isinstance(config, dict):
            raise ValueError("config must be a JSON object as text")

    @property
    def calls(self) -> int:
        """Number of network calls of the full run. A step of a schedule is one network call."""
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
    """Model, sampler, guidance layout, latent shape, batch range and dtype.

    Attributes:
        model_class, model_digest: the model and its weights.
        dtype: type of the network's weights and features.
        sampler: the scheduler.
        guidance: how guidance lays out the rows of a batch.
        latent_shape: the latent of one image, ``(C, H, W)``, or of a video, ``(C, F, H, W)``.
        batch: images per call.
        tokens: lengths of the text sequence. None for a model without text, and in contracts of format 1.1 and before.
        height, width: sizes of the latent that a run may choose from. None where ``latent_shape`` fixes the size.
        versions: versions of the tools, as a record. They are not compared.
    """

    model_class: str
    model_digest: str
    dtype: str
    sampler: SamplerSpec
    guidance: Guidance
    latent_shape: tuple[int, ...]
    batch: BatchRange = BatchRange()
    tokens: SizeRange | None = None
    height: SizeRange | None = None
    width: SizeRange | None = None
    versions: Mapping[str, str] = field(default_factory=dict, compare=False)

    @property
    def rows_per_image(self) -> int:
        """Rows of the network's batch per image: 2 under concatenated guidance."""
        return 2 if self.guidance == "concat" else 1

    def guidance_scale(self, requested: float | None) -> float:
        """The scale of a run: as requested, by default 2 with guidance and 1 without."""
        if requested is not None:
            return requested
        return 2.0 if self.guidance == "concat" else 1.0

    @property
    def latent_dims(self) -> tuple[Dim, ...]:
        """The latent of one image, with the symbols of free sizes in place of numbers."""
        free = (name if size is not None else None for name, size in ((HEIGHT, self.height), (WIDTH, self.width)))
        last = (symbol or number for symbol, number in zip(free, self.latent_shape[-2:], strict=False))
        return (*self.latent_shape[:-2], *last)

    def latent_at(self, chosen: Mapping[str, int]) -> tuple[int, ...]:
        """The latent of one image in numbers.

        Args:
            chosen: values of free sizes by symbol. The others have their usual values.

        Returns:
            ``(C, H, W)``, or ``(C, F, H, W)`` with frames.
        """
        return tuple(chosen.get(dim, size) for dim, size in zip(self.latent_dims, self.latent_shape, strict=True))  # type: ignore[arg-type]

    @property
    def ranges(self) -> dict[str, SizeRange]:
        """The range of every free size that the contract has, by symbol."""
        ranges = {name: getattr(self, name) for name in FREE_SIZES}
        return {name: allowed for name, allowed in ranges.items() if allowed is not None}

    def sizes(self, batch: int, chosen: Mapping[str, int] = MappingProxyType({})) -> dict[str, int]:
        """Values of the symbols in a TensorSpec's shape.

        Args:
            batch: images of a call.
            chosen: values of free sizes by symbol. The others have their usual values.

        Returns:
            A value for every symbol.

        Raises:
            UsageError: a value is outside its range, or the contract does not have the size.
        """
        for name, value in chosen.items():
            allowed = self.ranges.get(name)
            if allowed is None or not allowed.has(value):
                limits = "has no such size" if allowed is None else f"takes {allowed}"
                raise UsageError(
                    f"{name} is {value}, but the contract {limits}: change {name}, or make a schedule for it"
                )
        usual = {name: allowed.opt for name, allowed in self.ranges.items()}
        return {"batch": batch, "rows": batch * self.rows_per_image, **usual, **chosen}

    def largest_sizes(self, batch: int) -> dict[str, int]:
        """Values of the symbols at the largest sizes that the contract allows for ``batch`` images."""
        return self.sizes(batch, {name: allowed.max for name, allowed in self.ranges.items()})


def check_contract(contract: Contract, where: str) -> None:
    """Check that a contract from a file can be used.

    Args:
        contract: the contract.
        where: the file, for the message.

    Raises:
        InputError: a number makes no sense.
    """
    sampler, batch = contract.sampler, contract.batch
    problems = {
        "sampler.timesteps is empty": not sampler.timesteps,
        "sampler.steps is below 1": sampler.steps < 1,
        "latent_shape holds no sizes above 0": not contract.latent_shape or min(contract.latent_shape) < 1,
        "batch is not in the order min, opt, max": not 1 <= batch.min <= batch.opt <= batch.max,
        **{
            f"{name} is not in the order min, opt, max": not 1 <= size.min <= size.opt <= size.max or size.step < 1
            for name, size in contract.ranges.items()
        },
        **{
            f"{name} has another usual value than latent_shape": contract.ranges[name].opt not in contract.latent_shape
            for name in (HEIGHT, WIDTH)
            if name in contract.ranges
        },
    }
    if problem := next((text for text, is_wrong in problems.items() if is_wrong), None):
        raise InputError(f"{where}: contract.{problem}: fix the file, or write it again")


def check_same_contract(expected: Contract, actual: Contract, artifact: str) -> None:
    """Check that two contracts agree. Versions and ranges of sizes may differ.

    Args:
        expected: the contract that applies.
        actual: the contract of the artifact.
        artifact: the artifact's name in the message, such as a file name.

    Raises:
        InputError: the contracts differ. The message names the first field that differs.
    """
    for name in ("model_class", "model_digest", "dtype", "sampler", "guidance", "latent_shape"):
        ours, theirs = getattr(expected, name), getattr(actual, name)
        if ours != theirs:
            raise InputError(f"{artifact} was made for {name} {_brief(theirs)}, expected {_brief(ours)}: make it again")


def _brief(value: object) -> str:
    if isinstance(value, SamplerSpec):
        return f"{value.class_name} with {value.calls} calls (config {value.digest[:12]})"
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Version of each installed distribution among ``names``. Nothing is imported."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
