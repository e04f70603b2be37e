"""A bundle in the place of a pipeline's denoiser: same signature, same config, one call per step.

It is a diffusers model without parameters: one empty buffer says where it is. A class is made for each diffusers class
that is stood in for, and compares equal to it, because ``DiffusionPipeline.from_pipe`` takes components over by
``type(component) in expected`` alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin  # noqa: TID251 - pipelines accept only models of diffusers
from diffusers.models.modeling_outputs import Transformer2DModelOutput  # noqa: TID251 - what a denoiser returns
from diffusers.models.modeling_utils import ModelMixin  # noqa: TID251 - pipelines accept only models of diffusers

from dipgo_deploy.bundle.bundle import Bundle
from dipgo_deploy.bundle.load import load_bundle
from dipgo_deploy.bundle.write import copy_bundle
from dipgo_deploy.core.disk import read_json
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.models.loading import DTYPES
from dipgo_deploy.pipeline.calls import CallReader, NetworkCall, RefusedCall
from dipgo_deploy.pipeline.checks import CallCheck, PipelineCheck
from dipgo_deploy.pipeline.stepping import StepPrograms
from dipgo_deploy.pipeline.trajectory import DeployedTrajectory

__all__ = ["DeployedDenoiser"]


class _StandIn(type(ModelMixin)):  # type: ignore[misc]
    """The type of classes that equal the diffusers class they stand in for."""

    stands_for: type | None = None

    def __eq__(cls, other: object) -> bool:
        return other is cls or (cls.stands_for is not None and other is cls.stands_for)

    __hash__ = type.__hash__


class DeployedDenoiser(ModelMixin, ConfigMixin, metaclass=_StandIn):
    """The denoiser of a bundle for a diffusers pipeline: ``pipe.unet = DeployedDenoiser.from_bundle(bundle)``.

    Every call is one step of the bundle's schedule: its SubNet runs on the features kept from earlier steps, or the
    prediction is held and nothing runs. The pipeline's own scheduler samples; it must be the bundle's, with as many
    steps. A call outside the contract raises RefusedCall; with ``fallback`` the PyTorch model of the bundle draws that
    run instead, and a warning says so once. Not thread-safe: one run at a time, of one pipeline.
    """

    config_name = "config.json"

    def __init__(self, bundle: Bundle, run: RunOptions, *, fallback: bool = False) -> None:
        super().__init__()
        contract = bundle.manifest.contract
        self.register_to_config(**_config(bundle))
        self.register_buffer("place", torch.empty(0), persistent=False)
        self.bundle, self.run, self.fallback = bundle, run, fallback
        if "projection_class_embeddings_input_dim" in self.config:  # SDXL's pipelines look it up in the layer itself
            width = self.config["projection_class_embeddings_input_dim"]
            self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=width))
        inputs = bundle.blocks.inputs
        self._reader = CallReader(contract.model_class, contract.latent_shape, [spec.name for spec in inputs])
        self._programs = StepPrograms(bundle, run)
        self._new_trajectory = partial(
            DeployedTrajectory, self._programs, CallCheck(contract, inputs), contract.sampler
        )
        self._trajectories: dict[str, DeployedTrajectory] = {}
        self._context = ""
        self._check = PipelineCheck(contract.sampler)
        self._warned = False

    @classmethod
    def from_bundle(cls, bundle: Bundle | str | Path, *, fallback: bool = False, **options: Any) -> DeployedDenoiser:
        """The denoiser of a bundle folder or of an opened one; ``options`` are the fields of RunOptions.

        Raises InputError where it is no bundle or its model no class of diffusers; what the backend lacks shows at the
        first call.
        """
        opened = bundle if isinstance(bundle, Bundle) else load_bundle(bundle)
        kind = _class_for(opened.manifest.contract.model_class)
        return kind(opened, RunOptions(**options), fallback=fallback)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> DeployedDenoiser:
        """What ``save_pretrained`` wrote; ``options`` are those of ``from_bundle``, others of diffusers are ignored."""
        known = ("fallback", *(field.name for field in fields(RunOptions)))
        return cls.from_bundle(folder, **{name: options[name] for name in known if name in options})

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write the bundle, without the components around the denoiser, to a folder; options of diffusers are ignored.

        Raises InputError where it cannot be written.
        """
        copy_bundle(self.bundle, Path(save_directory))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the bundle's network, whatever the pipeline was cast to: inputs are converted."""
        return DTYPES[self.bundle.manifest.contract.dtype]

    def prepare(self, start: int = 0, batch: int | None = None) -> None:
        """Load the graphs of runs that begin at step ``start`` now, not in the first of them.

        ``batch`` images, None for the fewest of the contract; engines take only those that they were built for.
        Raises RefusedCall for others.
        """
        self._programs.prepare(start, self.bundle.manifest.contract.batch.min if batch is None else batch)

    def reset(self) -> None:
        """Forget all runs. Needed only where a run was broken off and the next one begins at its very next step."""
        self._trajectories.clear()

    def watch(self, pipeline: Any) -> None:
        """Refuse calls while ``pipeline`` has another scheduler than the bundle's, even one of the same timesteps."""
        self._check.watch(pipeline)

    @contextmanager
    def cache_context(self, name: str, **_: Any) -> Iterator[None]:
        """Calls inside belong to a trajectory of their own: pipelines that call twice a step name each call."""
        before, self._context = self._context, name
        try:
            yield
        finally:
            self._context = before

    def load_lora_adapter(self, *_: Any, **__: Any) -> None:
        """Refused: UsageError. A LoRA is fused into the weights before they are traced."""
        raise UsageError("a deployed denoiser takes no LoRA: fuse it before tracing, with --lora FILE")

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the forward of the diffusers class: a one-tuple, or an output with ``sample``.

        Raises RefusedCall for a call outside the contract, unless ``fallback`` is set.
        """
        call: NetworkCall | None = None
        trajectory = self._trajectories.setdefault(self._context, self._new_trajectory())
        try:
            call = self._reader.read(args, kwargs)
            self._check.check()
            sample = call.returned(trajectory.predict(call))
        except RefusedCall as refusal:
            if not self.fallback:
                raise
            if call is not None:
                trajectory.give_up(call, refusal)
            return self._fall_back(refusal, args, kwargs)
        return Transformer2DModelOutput(sample=sample) if call.return_dict else (sample,)

    def _fall_back(self, refusal: RefusedCall, args: Any, kwargs: Any) -> Any:
        if not self._warned:
            warnings.warn(f"the PyTorch model runs instead of the bundle: {refusal}", stacklevel=4)
            self._warned = True
        module = self.bundle.model.module.to(self.place.device)
        return module(*args, **kwargs)


@cache
def _class_for(model_class: str) -> type[DeployedDenoiser]:
    """The class that stands in for ``model_class``; saved pipelines record it as DeployedDenoiser of this module."""
    import diffusers  # noqa: TID251 - the class whose place is taken

    members = {"stands_for": getattr(diffusers, model_class, None), "__module__": __name__}
    return _StandIn(DeployedDenoiser.__name__, (DeployedDenoiser,), members)


def _config(bundle: Bundle) -> dict[str, Any]:
    """The config of the model that was traced, which pipelines read."""
    config = read_json(bundle.denoiser / "config.json")
    if not all(isinstance(name, str) and name.isidentifier() for name in config):
        raise InputError(f"{bundle.denoiser / 'config.json'} is no config of diffusers: export the bundle again")
    return {name: value for name, value in config.items() if not name.startswith("_")}
