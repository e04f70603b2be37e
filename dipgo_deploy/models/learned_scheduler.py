"""LearnedScheduler: a learned sampler as a diffusers scheduler, for any pipeline in PyTorch and for every bundle.

1. Its config holds one sampler for each number of steps (core/learned_sampler.py). Another number is refused.
2. A step may read all outputs of the run so far, so every run starts at its first step.
3. A network input may differ from the state. ``scale_model_input`` makes it, also for the doubled rows of guidance.
4. A scheduler never sees the network. ``models.check_learned`` compares a pipeline with the model of the learning.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin  # noqa: TID251 - the home of diffusers
from diffusers.configuration_utils import register_to_config  # noqa: TID251 - the home of diffusers
from diffusers.schedulers.scheduling_utils import SchedulerOutput  # noqa: TID251 - the home of diffusers

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import load_schedule
from dipgo_deploy.core.learned_sampler import Combination, LearnedSampler, read_learned_sampler

__all__ = ["LearnedScheduler"]

_SAME_TIME = 2.0**-8
"""Largest relative error of a time in half precision (bfloat16)."""


class LearnedScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A scheduler whose times and coefficients were learned for one model.

    ``pipeline.scheduler = LearnedScheduler.from_pretrained(folder)`` runs it in PyTorch.

    Args:
        samplers: one document of LearnedSampler for each number of steps.
        made_for: the model that the samplers were learned for: ``model_class``, ``model_digest``, ``guidance`` (layout
            of the rows), ``guidance_range`` (lowest and highest scale) and ``latent_shape``.
        base: config of the model's own scheduler, with ``_class_name``.
        full_run: the sampler that the samplers stand in for: ``class_name``, ``config``, ``steps`` and ``timesteps``.
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type, shift: noise schedule
            and prediction of the model, repeated from ``base`` so that other schedulers can be made from this config.

    Raises:
        ValueError: a document is no learned sampler, or two have the same number of calls.
    """

    order = 1
    init_noise_sigma: float

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        samplers: Sequence[Mapping[str, Any]] = (),
        made_for: Mapping[str, Any] | None = None,
        base: Mapping[str, Any] | None = None,
        full_run: Mapping[str, Any] | None = None,
        num_train_timesteps: int = 1000,
        beta_start: float | None = None,
        beta_end: float | None = None,
        beta_schedule: str | None = None,
        trained_betas: Sequence[float] | None = None,
        prediction_type: str | None = None,
        shift: float | None = None,
    ) -> None:
        learned = [read_learned_sampler(document) for document in samplers]
        self._samplers = {sampler.calls: sampler for sampler in learned}
        if not learned or len(self._samplers) != len(learned):
            raise ValueError("a learned scheduler needs one sampler for each of its numbers of steps")
        self._warned = False
        self._choose(next(iter(self._samplers)))

    @classmethod
    def of(
        cls,
        samplers: Sequence[LearnedSampler],
        base: Mapping[str, Any],
        made_for: Mapping[str, Any] | None = None,
        full_run: SamplerSpec | None = None,
    ) -> LearnedScheduler:
        """The scheduler of some samplers.

        Args:
            samplers: one for each number of calls.
            base: config of the model's own scheduler.
            made_for: the model, see the class.
            full_run: the sampler that the samplers stand in for.

        Returns:
            The scheduler.
        """
        repeated = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
                    "prediction_type", "shift")  # fmt: skip
        kept = {key: value for key, value in base.items() if key != "_diffusers_version"}
        own = {key: base[key] for key in repeated if base.get(key) is not None}
        full = None if full_run is None else {**asdict(full_run), "config": full_run.config_dict}
        return cls([sampler.document for sampler in samplers], dict(made_for or {}), kept, full, **own)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any = None, **options: Any) -> LearnedScheduler:
        """Load a folder that ``save_pretrained`` wrote, or take the scheduler of a schedule file or a bundle.

        Args:
            pretrained_model_name_or_path: the folder, the schedule file or the bundle.
            **options: options of diffusers, for its own folders.

        Returns:
            The scheduler.

        Raises:
            InputError: a schedule whose sampler is not learned.
        """
        path = Path(str(pretrained_model_name_or_path))
        schedule = path if path.is_file() else path / "schedule.json"
        if not schedule.is_file() or options.get("subfolder"):
            scheduler: LearnedScheduler = super().from_pretrained(pretrained_model_name_or_path, **options)
            return scheduler
        spec = load_schedule(schedule).contract.sampler
        if spec.class_name != cls.__name__:
            raise InputError(f"{schedule} is made for {spec.class_name}: search with method fit for a learned sampler")
        found: LearnedScheduler = cls.from_config(spec.config_dict)
        return found

    @property
    def full_run(self) -> SamplerSpec | None:
        """The sampler that this scheduler stands in for. Raises ValueError for a damaged record."""
        full = self.config.full_run
        if full is None:
            return None
        try:
            config = json.dumps(full["config"], sort_keys=True, allow_nan=False)
            times = tuple(float(time) for time in full["timesteps"])
            return SamplerSpec(str(full["class_name"]), config, int(full["steps"]), times)
        except (KeyError, TypeError) as error:
            raise ValueError("full_run of a learned scheduler must be a recorded sampler") from error

    @property
    def steps(self) -> tuple[int, ...]:
        """The numbers of steps for which there is a sampler."""
        return tuple(sorted(self._samplers))

    @property
    def sampler(self) -> LearnedSampler:
        """The sampler of the current number of steps."""
        return self._sampler

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the sampler of a number of steps, and start a run.

        Raises ValueError for a number that was not learned.
        """
        if num_inference_steps not in self._samplers:
            known = ", ".join(map(str, self.steps))
            raise ValueError(
                f"this sampler was learned for {known} steps, got {num_inference_steps}: set num_inference_steps to "
                f"{'that number' if len(self._samplers) == 1 else 'one of these'}, or learn another sampler"
            )
        self._choose(num_inference_steps, device)

    def _choose(self, steps: int, device: str | torch.device | None = None) -> None:
        self._sampler = self._samplers[steps]
        self.num_inference_steps = steps
        self.init_noise_sigma = self._sampler.initial_scale
        self.timesteps = torch.tensor(self._sampler.timesteps, dtype=torch.float32, device=device)
        self._restart()

    def _restart(self) -> None:
        self._step, self._outputs = 0, list[torch.Tensor]()
        self._noise: torch.Tensor | None = None
        self._entering: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def step_index(self) -> int | None:
        """Number of the next step, None before a run."""
        return self._step if self._outputs else None

    @property
    def begin_index(self) -> int:
        """The first step of a run, always 0."""
        return 0

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Accept only 0. Raises ValueError for another step, because a step reads the outputs before it."""
        if begin_index != 0:
            raise ValueError(
                f"a learned sampler runs from its first step, not from step {begin_index}: use strength 1, or another "
                "scheduler"
            )

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """The network's input for a state.

        Args:
            sample: the state (rows, C, ...). Rows may be repeated, as guidance repeats them.
            timestep: the time of the step.

        Returns:
            The combination of state, first latent and outputs so far, or the state itself.
        """
        self._begin(sample, timestep)
        if not self._sampler.inputs:
            return sample
        entering = self._combined(self._sampler.inputs[self._step], sample)
        # Some pipelines (DiT) pass the network's input to ``step`` in place of the state.
        self._entering = (entering, sample)
        return entering

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """Make one step.

        Args:
            model_output: the guided output (B, C, ...). Further channels, a learned variance, are left out.
            timestep: its time, checked against the step.
            sample: the state before the step.
            return_dict: whether to return a SchedulerOutput instead of a tuple.

        Returns:
            The state after the step.

        Raises:
            ValueError: the time is not that of the next step.
        """
        if self._entering is not None and sample is self._entering[0]:
            sample = self._entering[1]
        self._begin(sample, timestep)
        if model_output.shape[1] == 2 * sample.shape[1]:
            model_output = model_output[:, : sample.shape[1]]
        if not self._outputs:
            self._noise = sample
        self._outputs.insert(0, model_output)
        state = self._combined(self._sampler.states[self._step], sample)
        self._step, self._entering = self._step + 1, None
        if self._step == self._sampler.calls:
            self._restart()
        return SchedulerOutput(prev_sample=state) if return_dict else (state,)

    def add_noise(self, original_samples: Any, noise: Any, timesteps: Any) -> torch.Tensor:
        """Refuse to start from an image: a learned sampler starts from noise."""
        raise ValueError("a learned sampler starts from noise, not from an image: use another scheduler")

    def _begin(self, sample: torch.Tensor, timestep: float | torch.Tensor | None) -> None:
        """Check time and shape of a call. A call at the first time begins a new run."""
        times = self._sampler.timesteps
        if timestep is not None:
            time = float(timestep.flatten()[0] if isinstance(timestep, torch.Tensor) else timestep)
            place = _place(time, times)
            if place == 0 and self._step and self._entering is None:
                self._restart()  # The run before was interrupted.
            if place != self._step:
                raise ValueError(
                    f"step {self._step} of this sampler is at time {times[self._step]:g}, got {time:g}: call the steps "
                    "in order, and set_timesteps before another run"
                )
        shape = (self.config.made_for or {}).get("latent_shape")
        if shape and tuple(sample.shape[1:]) != tuple(shape) and not self._warned:
            self._warned = True
            warnings.warn(
                f"this sampler was learned on latents of shape {tuple(shape)}, got {tuple(sample.shape[1:])}: learn "
                "one for this size", stacklevel=3,
            )  # fmt: skip

    def _combined(self, row: Combination, state: torch.Tensor) -> torch.Tensor:
        """A combination for a state, whose rows may repeat those of the run. Computed in float32 or wider."""
        dtype = torch.promote_types(state.dtype, torch.float32)
        total = row.state * state.to(dtype)
        if row.noise != 0.0:
            total = total + row.noise * _rows_like(self._noise if self._noise is not None else state, total)
        for coefficient, output in zip(row.outputs, self._outputs, strict=False):
            total = total + coefficient * _rows_like(output, total)
        return total.to(state.dtype)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


def _place(time: float, times: Sequence[float]) -> int | None:
    """The step whose time a call has, None for another time. Pipelines may round times to half precision."""
    place = min(range(len(times)), key=lambda step: abs(times[step] - time))
    return place if abs(times[place] - time) <= max(_SAME_TIME * abs(time), 1e-3) else None


def _rows_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """A tensor repeated to the rows of another, as guidance repeats the latents."""
    times = len(other) // len(tensor)
    tensor = tensor.to(other.device, other.dtype)
    return tensor if times == 1 else tensor.repeat(times, *[1] * (tensor.dim() - 1))
