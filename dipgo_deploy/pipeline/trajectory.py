"""The calls of one trajectory after another, answered by the graphs: what a cache context stands for."""

from __future__ import annotations

import torch

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.pipeline.calls import NetworkCall, RefusedCall
from dipgo_deploy.pipeline.checks import CallCheck
from dipgo_deploy.pipeline.stepping import StepPrograms, StepSession
from dipgo_deploy.pipeline.tracker import CallTracker, Place

__all__ = ["DeployedTrajectory"]


class DeployedTrajectory:
    """Answers calls in the order of the schedule. Nothing of a run is left when the next one begins.

    Args:
        programs: shared by all trajectories of a bundle.
        check: shapes, rows and guidance of the contract.
        sampler: whose timesteps the calls must follow.
    """

    def __init__(self, programs: StepPrograms, check: CallCheck, sampler: SamplerSpec) -> None:
        self._programs, self._check, self._tracker = programs, check, CallTracker(sampler)
        self._session: StepSession | None = None
        self._bound: tuple[int, int] | None = None
        self._opening: NetworkCall | None = None
        self._versions: dict[str, int] = {}
        self._given_up: tuple[float, RefusedCall] | None = None

    def reset(self) -> None:
        """Forget the run: the next call begins one."""
        self._tracker.reset()
        self._opening = self._given_up = None

    def give_up(self, call: NetworkCall, refusal: RefusedCall) -> None:
        """Refuse the rest of this run too: somebody else draws it."""
        self._remember(call)
        self._given_up = (call.timestep, refusal)

    def predict(self, call: NetworkCall) -> torch.Tensor:
        """The prediction of a call. Raises RefusedCall, and forgets the run, where it does not fit the contract."""
        self._check_given_up(call)
        try:
            return self._predict(call)
        except BaseException:
            self.reset()
            raise

    def _check_given_up(self, call: NetworkCall) -> None:
        if self._given_up is None:
            return
        last, refusal = self._given_up
        if self._is_same(call) and call.timestep <= last:
            self._given_up = (call.timestep, refusal)
            raise refusal
        self.reset()

    def _predict(self, call: NetworkCall) -> torch.Tensor:
        batch = self._check.check(call)
        place = self._tracker.follow(call.timestep, call.tolerance, self._is_same(call))
        is_first = place.step == place.start
        self._check_rows(place, call, is_first)
        if place.step - place.start < 2:
            self._check.check_guidance(call, first=is_first)
        if is_first:
            self._begin(place, call, batch)
        elif place.replay:
            assert self._opening is not None
            self._begin(place, self._opening, batch)
            self._run(place.start, place, self._opening)
        return self._run(place.step, place, call)

    def _is_same(self, call: NetworkCall) -> bool:
        """Whether a call's conditioning is the run's: the same tensors, or equal ones."""
        own = {} if self._opening is None else self._opening.conditioning
        return (
            self._opening is not None
            and own.keys() == call.conditioning.keys()
            and all(
                self._is_unchanged(name, tensor) if tensor is own[name] else _are_equal(tensor, own[name])
                for name, tensor in call.conditioning.items()
            )
        )

    def _is_unchanged(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether a tensor that was given before has not been written to since."""
        return self._versions.get(name) == _version(tensor)

    def _check_rows(self, place: Place, call: NetworkCall, is_first: bool) -> None:
        if is_first or self._opening is None or len(self._opening.latent) == len(call.latent):
            return
        raise RefusedCall(
            f"the run began with {len(self._opening.latent)} rows, at step {place.step} it has {len(call.latent)}: "
            "keep guidance and batch for a whole run"
        )

    def _begin(self, place: Place, call: NetworkCall, batch: int) -> None:
        if self._bound != (place.start, batch):
            self._session = self._programs.session(place.start, batch)
            self._bound = (place.start, batch)
        assert self._session is not None
        self._session.give(call.conditioning)
        self._remember(call)

    def _remember(self, call: NetworkCall) -> None:
        self._opening = call
        self._versions = {name: _version(tensor) for name, tensor in call.conditioning.items()}

    def _run(self, step: int, place: Place, call: NetworkCall) -> torch.Tensor:
        assert self._session is not None
        return self._session.predict(step - place.start, call.latent)


def _are_equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _version(tensor: torch.Tensor) -> int:
    """PyTorch's count of writes to a tensor; inference tensors have none."""
    return 0 if tensor.is_inference() else tensor._version
