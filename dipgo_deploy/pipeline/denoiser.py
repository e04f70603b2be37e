"""DeployedDenoiser: a bundle in place of a pipeline's denoiser, with the same signature and config.

It is a diffusers model whose only parameter is empty. Pipelines read device and dtype of it. Every diffusers class that
is replaced gets a subclass of its own, which compares equal to the diffusers class. ``DiffusionPipeline.from_pipe``
needs that: it accepts a component only by ``type(component) in expected``.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
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
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.run_options import RunOptions
from dipgo_deploy.models.loaded_model import DTYPES
from dipgo_deploy.pipeline.calls import CallReader, NetworkCall, RefusedCall
from dipgo_deploy.pipeline.checks import CallCheck, CallSizes, SchedulerCheck
from dipgo_deploy.pipeline.replaced_members import missing_part, replaced_members
from dipgo_deploy.pipeline.stepping import StepPrograms
from dipgo_deploy.pipeline.trajectory import DeployedTrajectory
from dipgo_deploy.supernet.surgery import lock_of

__all__ = ["DeployedDenoiser"]


class _ReplacementType(type(ModelMixin)):  # type: ignore[misc]
    """The type of classes that compare equal to the diffusers class that they replace."""

    replaces: type | None = None

    def __eq__(cls, other: object) -> bool:
        return other is cls or (cls.replaces is not None and other is cls.replaces)

    __hash__ = type.__hash__


class DeployedDenoiser(ModelMixin, ConfigMixin, metaclass=_ReplacementType):
    """The denoiser of a bundle for a diffusers pipeline: ``pipe.unet = DeployedDenoiser.from_bundle(bundle)``.

    Every call is one step of the bundle's schedule. The step's SubNet runs on features of earlier steps, or the step
    reuses an earlier prediction and nothing runs. The pipeline's scheduler does the sampling. It must be the scheduler
    of the contract, with the same number of steps. The denoiser makes one run of one pipeline at a time. If a second
    thread starts a run before the first run is done, the rest of the first run is refused: give each thread a denoiser
    of its own, such as ``copy.deepcopy(denoiser)``, which shares the bundle's files.

    Args:
        bundle: the bundle.
        run: backend, device and how the graphs run.
        fallback: let the bundle's PyTorch model make runs outside the contract, with one warning. Otherwise such a call
            raises RefusedCall.

    Raises:
        InputError: the model's class is not of diffusers, or ``fallback`` needs a live module that was not passed.
        UsageError: ``cuda_graph`` or ``compiler``, which are for whole runs.
    """

    config_name = "config.json"

    def __init__(self, bundle: Bundle, run: RunOptions, *, fallback: bool = False) -> None:
        super().__init__()
        contract = bundle.contract
        self.register_to_config(**_config(bundle))
        dtype = DTYPES[contract.dtype]
        self.location = torch.nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)
        self.bundle, self.run, self.fallback = bundle, run, fallback
        if fallback and bundle.manifest.behaviour:
            bundle.live_model  # noqa: B018 - refuses files without that behaviour now, not in the middle of a run
        if "projection_class_embeddings_input_dim" in self.config:
            # Pipelines of SDXL read this width from the layer, not from the config.
            width = self.config["projection_class_embeddings_input_dim"]
            self.add_embedding = SimpleNamespace(linear_1=SimpleNamespace(in_features=width))
        inputs = bundle.blocks.inputs
        self._reader = CallReader(contract.model_class, contract.latent_shape, inputs)
        self._programs = StepPrograms(bundle, run)
        self._new_trajectory = partial(
            DeployedTrajectory, self._programs, CallCheck(contract, inputs), contract.sampler
        )
        self._trajectories: dict[str, DeployedTrajectory] = {}
        self._contexts: dict[int, str] = {}
        self._lock = threading.RLock()
        self._scheduler_check = SchedulerCheck(contract.sampler)
        self._warned = False

    @classmethod
    def from_bundle(
        cls, bundle: Bundle | str | Path, *, fallback: bool = False, trust_weights: bool = False, **options: Any
    ) -> DeployedDenoiser:
        """Make the denoiser of a bundle. Backend and device are first used at the first call.

        Args:
            bundle: the bundle or its folder.
            fallback: let the PyTorch model make runs outside the contract.
            trust_weights: check large files of the folder by size only.
            **options: fields of RunOptions.

        Returns:
            The denoiser, of a class that compares equal to the diffusers class.

        Raises:
            InputError: the folder is not a bundle, or the model's class is not of diffusers.
            UsageError: options that do not fit together, ``cuda_graph`` or ``compiler``.
        """
        loaded = bundle if isinstance(bundle, Bundle) else load_bundle(bundle, trust_weights=trust_weights)
        replacement = _class_for(loaded.contract.model_class)
        return replacement(loaded, RunOptions(**options), fallback=fallback)

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> DeployedDenoiser:
        """Load a folder that ``save_pretrained`` wrote.

        Args:
            folder: the folder.
            **options: ``fallback``, ``trust_weights`` and fields of RunOptions. Other options of diffusers are ignored.

        Returns:
            The denoiser.
        """
        known = ("fallback", "trust_weights", *(field.name for field in fields(RunOptions)))
        return cls.from_bundle(folder, **{name: options[name] for name in known if name in options})

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        """Write the bundle to a folder, without other components. Raises InputError if it is not writable."""
        copy_bundle(self.bundle, Path(save_directory))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the bundle's network. A cast of the pipeline does not change it, and inputs are converted."""
        return DTYPES[self.bundle.contract.dtype]

    def prepare(self, start: int = 0, batch: int | None = None, sizes: Mapping[str, int] | None = None) -> None:
        """Load graphs or engines now, so that the first run does not have to.

        Args:
            start: the step at which runs start.
            batch: images of a run. None takes the fewest images that the contract allows.
            sizes: values of free sizes by symbol, such as ``{"tokens": 154}``. The others have their usual values.

        Raises:
            RefusedCall: engines do not take this batch, size or start.
        """
        contract = self.bundle.contract
        images = contract.batch.min if batch is None else batch
        self._programs.prepare(start, CallSizes.of(contract, images, sizes or {}))

    def reset(self) -> None:
        """Forget all runs. Needed only after an interrupted run, if the next run starts at exactly the next step."""
        self._trajectories.clear()

    def watch(self, pipeline: Any) -> None:
        """Refuse calls while a pipeline has another scheduler than the contract's, even with the same timesteps."""
        self._scheduler_check.watch(pipeline)

    @contextmanager
    def cache_context(self, name: str, **_: Any) -> Iterator[None]:
        """Give the calls inside a trajectory of their own. Pipelines that make two calls per step name each call."""
        thread = threading.get_ident()
        before = self._contexts.get(thread, "")
        self._contexts[thread] = name
        try:
            yield
        finally:
            self._contexts[thread] = before

    def __getattr__(self, name: str) -> Any:
        """Called for attributes that are not there. Raises NoSuchPart, which is an AttributeError and a UsageError."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            replaced = type(self).replaces
            raise missing_part(replaced.__name__ if replaced else "denoiser", name) from None

    def __deepcopy__(self, _: Any) -> DeployedDenoiser:
        """Another denoiser of the same bundle, for another thread or pipeline."""
        return type(self)(self.bundle, self.run, fallback=self.fallback)

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickle names the bundle's folder, which must be there when the pickle is loaded."""
        options = {field.name: getattr(self.run, field.name) for field in fields(RunOptions)}
        return partial(DeployedDenoiser.from_bundle, self.bundle.folder, fallback=self.fallback, **options), ()

    @torch.compiler.disable
    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Make one step, with the signature of the diffusers class.

        Args:
            *args: as the diffusers class takes them.
            **kwargs: as the diffusers class takes them.

        Returns:
            A tuple with the prediction, or an output with ``sample``.

        Raises:
            RefusedCall: the call is outside the contract and ``fallback`` is not set.
            UsageError: another thread has started a run in the middle of this run.
            TypeError: arguments that the diffusers class does not take either.
        """
        with self._lock:
            return self._forward(args, kwargs)

    def _forward(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        call: NetworkCall | None = None
        context = self._contexts.get(threading.get_ident(), "")
        trajectory = self._trajectories.setdefault(context, self._new_trajectory())
        try:
            call = self._reader.read(args, kwargs)
            self._scheduler_check.check()
            sample = call.as_returned(trajectory.predict(call))
        except RefusedCall as refusal:
            if not self.fallback:
                raise
            trajectory.abandon(call, refusal)
            return self._fall_back(refusal, args, kwargs)
        return Transformer2DModelOutput(sample=sample) if call.return_dict else (sample,)

    def _fall_back(self, refusal: RefusedCall, args: Any, kwargs: Any) -> Any:
        if not self._warned:
            warnings.warn(f"the PyTorch model runs instead of the bundle: {refusal}", stacklevel=4)
            self._warned = True
        module = self.bundle.live_model.module
        with lock_of(module):
            return module.to(self.location.device)(*args, **kwargs)


@cache
def _class_for(model_class: str) -> type[DeployedDenoiser]:
    """The class that replaces a diffusers class. Saved pipelines record it as DeployedDenoiser of this module."""
    import diffusers  # noqa: TID251 - the class whose place is taken

    replaced = getattr(diffusers, model_class, None)
    members = replaced_members(replaced, DeployedDenoiser) | {"replaces": replaced, "__module__": __name__}
    return _ReplacementType(DeployedDenoiser.__name__, (DeployedDenoiser,), members)


def _config(bundle: Bundle) -> dict[str, Any]:
    """The config of the model that was traced. Pipelines read it."""
    config = read_json(bundle.denoiser / "config.json")
    if not all(isinstance(name, str) and name.isidentifier() for name in config):
        raise InputError(f"{bundle.denoiser / 'config.json'} is not a config of diffusers: re-export the bundle")
    return {name: value for name, value in config.items() if not name.startswith("_")}
