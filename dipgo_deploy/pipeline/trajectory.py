"""DeployedTrajectory: answers the calls of one trajectory after another with a bundle's graphs.

A pipeline that makes two calls per step has two trajectories, one for each cache context. A trajectory makes one run at
a time: a run of another thread takes its place, and the rest of the overtaken run is refused.
"""

from __future__ import annotations

import threading
from weakref import WeakSet

import torch

from dipgo_deploy.core.contract import SamplerSpec
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.finite import not_finite_error
from dipgo_deploy.pipeline.calls import NetworkCall, RefusedCall
from dipgo_deploy.pipeline.checks import CallCheck, CallSizes
from dipgo_deploy.pipeline.stepping import StepPrograms, StepSession
from dipgo_deploy.pipeline.tracker import CallTracker, Place

__all__ = ["DeployedTrajectory"]


class DeployedTrajectory:
    """Answers calls in the order of the schedule. A new run uses nothing of the run before.

    Args:
        programs: shared by all trajectories of a bundle.
        check: compares shapes, rows and guidance with the contract.
        sampler: the sampler whose timesteps the calls must follow.
    """

    def __init__(self, programs: StepPrograms, check: CallCheck, sampler: SamplerSpec) -> None:
        self._programs, self._check, self._tracker = programs, check, CallTracker(sampler)
        self._session: StepSession | None = None
        self._session_key: tuple[int, CallSizes] | None = None
        self._first_call: NetworkCall | None = None
        self._versions: dict[str, int] = {}
        self._abandoned: tuple[float, RefusedCall] | None = None
        self._thread: threading.Thread | None = None
        self._overtaken: WeakSet[threading.Thread] = WeakSet()

    def reset(self) -> None:
        """Forget the run. The next call starts a new one."""
        self._tracker.reset()
        self._first_call = self._abandoned = None

    def abandon(self, call: NetworkCall | None, refusal: RefusedCall) -> None:
        """Refuse the rest of a run, because the PyTorch model makes it.

        Args:
            call: the call that was refused. None if it could not be read.
            refusal: why.
        """
        self.reset()
        if call is not None:
            self._remember(call)
        self._abandoned = (self._tracker.first_time if call is None else call.timestep, refusal)

    def predict(self, call: NetworkCall) -> torch.Tensor:
        """The prediction of a call.

        Raises RefusedCall and forgets the run where the call does not fit the contract. Raises GateError where the
        prediction is not finite.
        """
        self._check_overtaken(call)
        self._check_abandoned(call)
        try:
            return self._predict(call)
        except BaseException:
            self.reset()
            raise

    def _check_abandoned(self, call: NetworkCall) -> None:
        """Raise the refusal again for a call that continues an abandoned run, whose conditioning may change."""
        if self._abandoned is None:
            return
        last_timestep, refusal = self._abandoned
        if call.timestep < last_timestep or (call.timestep == last_timestep and self._is_same(call)):
            self._abandoned = (call.timestep, refusal)
            raise refusal
        self.reset()

    def _check_overtaken(self, call: NetworkCall) -> None:
        """Raise UsageError for a call that continues a run which a run of another thread has overtaken.

        The PyTorch model does not take over here, because its calls would end the run of the other thread.
        """
        thread = threading.current_thread()
        if thread not in self._overtaken:
            return
        self._overtaken.discard(thread)
        if not self._tracker.begins(call.timestep, call.tolerance):
            raise UsageError(
                "another thread has started a run in the middle of this run: a deployed denoiser makes one run at a "
                "time, so give each thread a denoiser of its own, or let the threads wait for each other"
            )

    def _predict(self, call: NetworkCall) -> torch.Tensor:
        self._check_rows(call)
        sizes = self._check.check(call)
        was_running = self._tracker.is_running
        place = self._tracker.follow(call.timestep, call.tolerance, self._is_same(call), call.clock)
        is_first = place.step == place.start
        self._note_thread(is_overtaking=is_first and was_running)
        # Later steps are not compared: guidance cannot change in a run, and comparing rows costs time.
        if place.step - place.start < 2:
            self._check.check_guidance(call, first=is_first)
        if is_first:
            self._start(place, call, sizes)
        elif place.replay:
            assert self._first_call is not None
            self._start(place, self._first_call, sizes)
            self._run(place.start, place, self._first_call)
        prediction = self._run(place.step, place, call)
        # On a GPU every look at a value waits for the GPU, and NaN stays until the last step.
        is_looked_at = place.step - place.start < 2 or not self._tracker.is_running or prediction.device.type == "cpu"
        if is_looked_at and not prediction.isfinite().all():
            raise not_finite_error(f"the predictions of step {place.step}", self._check.contract)
        return prediction

    def _note_thread(self, is_overtaking: bool) -> None:
        thread = threading.current_thread()
        if is_overtaking and self._thread is not None and self._thread is not thread:
            self._overtaken.add(self._thread)
        self._thread = thread

    def _is_same(self, call: NetworkCall) -> bool:
        """Whether a call has the rows and the conditioning of the run: the same tensors, or equal tensors."""
        if self._first_call is None or len(self._first_call.latent) != len(call.latent):
            return False
        run = self._first_call.conditioning
        return run.keys() == call.conditioning.keys() and all(
            self._is_unchanged(name, tensor) if tensor is run[name] else _are_equal(tensor, run[name])
            for name, tensor in call.conditioning.items()
        )

    def _is_unchanged(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether a tensor has not been written to since the run's first call."""
        return self._versions.get(name) == _version(tensor)

    def _check_rows(self, call: NetworkCall) -> None:
        """Raise RefusedCall for a call that continues the run with other rows, as a callback may do."""
        first, tracker = self._first_call, self._tracker
        if first is None or not tracker.is_running or len(first.latent) == len(call.latent):
            return
        if tracker.expects(call.timestep, call.tolerance) and not tracker.begins(call.timestep, call.tolerance):
            raise RefusedCall(
                f"the run started with {len(first.latent)} rows, but has {len(call.latent)} at step "
                f"{tracker.next_step}: keep guidance and batch for a whole run, or let the PyTorch model finish it "
                "(fallback=True)"
            )

    def _start(self, place: Place, call: NetworkCall, sizes: CallSizes) -> None:
        if self._session_key != (place.start, sizes):
            self._session = self._programs.session(place.start, sizes)
            self._session_key = (place.start, sizes)
        assert self._session is not None
        self._session.set_conditioning(call.conditioning)
        self._remember(call)

    def _remember(self, call: NetworkCall) -> None:
        self._first_call = call
        self._versions = {name: _version(tensor) for name, tensor in call.conditioning.items()}

    def _run(self, step: int, place: Place, call: NetworkCall) -> torch.Tensor:
        assert self._session is not None
        return self._session.predict(step - place.start, call.latent)


def _are_equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


def _version(tensor: torch.Tensor) -> int:
    """PyTorch's count of in-place writes to a tensor. Inference tensors have no count."""
    return 0 if tensor.is_inference() else tensor._version
