"""The teacher: trajectories of the full network that a learned sampler is fitted to, recorded once and kept on disk.

1. ``full`` is the contract's own sampler. ``converged`` is UniPC with Karras noise levels, or another sampler where the
   model's noise schedule refuses these. Its calls are doubled until that changes the images by less than CONVERGED_DB.
2. A trajectory is recorded as the network sees it: its scaled input at every time, and the image at the end.
3. Between the recorded times, states are interpolated by cubics.
4. Each chunk of images is one file of the user's cache, so that an interrupted recording continues.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from dipgo_deploy.core.contract import Contract, SamplerSpec
from dipgo_deploy.core.disk import cache_folder, write_atomic
from dipgo_deploy.core.errors import DipgoError, UsageError
from dipgo_deploy.core.metrics import psnr_db
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.core.sampler import OpaqueSampler, noise_for
from dipgo_deploy.core.user_cache import mark_used
from dipgo_deploy.models import LoadedModel, sampler_spec
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.models.schedulers import is_flow_scheduler, own_config
from dipgo_deploy.search.fit.options import TeacherName
from dipgo_deploy.supernet.network import GuidedNetwork
from dipgo_deploy.supernet.stepper import SamplerStepper

__all__ = ["CONVERGED_DB", "Images", "Teacher", "record_images", "record_teacher", "run_teacher", "teacher_spec"]

CONVERGED_DB = 60.0
"""A run is converged if doubling its calls changes its images by less than this PSNR, in dB (median)."""

_FEWEST, _MOST = 25, 400
_PROBES = 4
"""Images on which convergence is tried."""

_CHUNK = 8
"""Images of one file in the cache."""

_ORDER = 3
"""Degree of the polynomials between recorded times."""


@dataclass(frozen=True)
class Images:
    """What is drawn: a model under a contract, one seed and one label per image, and the guidance scale."""

    model: LoadedModel
    contract: Contract
    seeds: tuple[int, ...]
    labels: tuple[int, ...]
    guidance_scale: float

    def part(self, first: int, count: int) -> Images:
        """Some of the images."""
        chosen = slice(first, first + count)
        return Images(self.model, self.contract, self.seeds[chosen], self.labels[chosen], self.guidance_scale)

    @property
    def noise(self) -> torch.Tensor:
        """Standard normal noise (B, C, ...), float32."""
        return torch.as_tensor(noise_for(self.seeds, self.contract.latent_shape))

    def network(self) -> GuidedNetwork:
        """The conditioned network of these images."""
        conditioning = self.model.conditioning(self.labels, self.contract.guidance)
        return GuidedNetwork(self.model, self.contract, conditioning, self.guidance_scale)


@dataclass(frozen=True)
class Teacher:
    """Recorded trajectories.

    Attributes:
        images_drawn: what was drawn.
        spec: the sampler.
        times: recorded times, descending.
        states: the network's inputs (T, B, C, ...) at these times.
        images: (B, C, ...).
        noise: where a student starts, (B, C, ...).
        initial_scale: factor from standard normal noise to ``noise``.
    """

    images_drawn: Images
    spec: SamplerSpec
    times: tuple[float, ...]
    states: torch.Tensor
    images: torch.Tensor
    noise: torch.Tensor
    initial_scale: float
    guided: GuidedNetwork

    def network(self, latent: torch.Tensor, time: float) -> torch.Tensor:
        """The guided output (B, C, ...) for a network input (B, C, ...)."""
        return self.guided.guided(self.guided(latent, time))

    def at(self, time: float) -> torch.Tensor:
        """The state (B, C, ...) at a time, by a cubic through the four nearest recorded times."""
        times = np.array(self.times)
        first = int(np.clip(np.searchsorted(-times, -time) - 2, 0, max(0, len(times) - _ORDER - 1)))
        nodes = times[first : first + _ORDER + 1]
        weights = [np.prod([(time - other) / (node - other) for other in nodes if other != node]) for node in nodes]
        shares = torch.tensor(weights, dtype=torch.float64).to(self.states.dtype).to(self.states.device)
        return torch.tensordot(shares, self.states[first : first + _ORDER + 1], dims=1)


def teacher_spec(images: Images, name: TeacherName) -> Work[SamplerSpec]:
    """The sampler of a teacher.

    Args:
        images: what is drawn. Convergence is tried on the first of them.
        name: ``full`` or ``converged``.

    Returns:
        A generator of Progress whose result is the sampler.

    Raises:
        UsageError: the full run draws noise, or no sampler converges.
    """
    own = images.contract.sampler
    if name == "full":
        reading = read_sampler(own)
        if isinstance(reading, OpaqueSampler) and "noise" in reading.reason:
            raise UsageError(
                f"{own.class_name} {reading.reason}, so its images are no function of the first noise: choose teacher "
                "converged, or another sampler"
            )
        return own
    probes, before = images.part(0, _PROBES), None
    for spec in _doubled(own):
        yield Progress("teacher", 0, 1, f"{spec.class_name} with {spec.calls} calls")
        drawn = run_teacher(probes, spec)[-1].cpu().numpy()
        if before is not None and np.median(psnr_db(before, drawn, clip=False)) >= CONVERGED_DB:
            return spec
        before, last = drawn, spec
    if before is None:
        raise UsageError("no deterministic sampler fits this model's noise schedule: choose teacher full")
    return last


def _doubled(own: SamplerSpec) -> Iterator[SamplerSpec]:
    """Specs of one high-order sampler with more and more calls."""
    config = own_config(own)
    flow = is_flow_scheduler(own.class_name, own.config_dict)
    arguments = {key: own.config_dict[key] for key in ("mu",) if own.config_dict.get(key) is not None}
    choices: list[tuple[str, Mapping[str, object]]] = [
        ("unipc", {"use_karras_sigmas": True}),
        ("dpmpp-2m", {"use_lu_lambdas": True}),
        ("unipc", {"timestep_spacing": "trailing"}),
        ("ddim", {"timestep_spacing": "trailing"}),
    ]
    if flow:
        shift = {"flow_shift": config["shift"]} if isinstance(config.get("shift"), int | float) else {}
        flows = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", **shift}
        choices = [("unipc", flows), ("flow-euler", arguments)]
    for sampler, options in choices:
        specs, calls = [], _FEWEST
        while calls <= min(_MOST, int(config.get("num_train_timesteps", 1000))):
            try:
                spec = sampler_spec(sampler, calls, config, options)
                if not isinstance(read_sampler(spec), OpaqueSampler):
                    specs.append(spec)
            except DipgoError:
                pass
            calls *= 2
        if specs:
            yield from specs
            return


def record_teacher(images: Images, spec: SamplerSpec) -> Work[Teacher]:
    """Record the trajectories of some images, or read them from the cache.

    Args:
        images: what to draw.
        spec: the teacher's sampler.

    Returns:
        A generator of Progress whose result is the teacher.
    """
    chunks, total = [], len(images.seeds)
    for first in range(0, total, _CHUNK):
        yield Progress("teacher", first, total, f"{spec.class_name} with {spec.calls} calls")
        chunks.append(_chunk(images.part(first, _CHUNK), spec))
    recorded = torch.cat(chunks, dim=1)
    stepper = SamplerStepper(spec)
    scale = stepper.initial_scale * float(stepper.scale_input(0, torch.ones(1, 1, 1, 1)))
    guided = images.network()
    recorded = recorded.to(guided.device)
    noise = images.noise.to(recorded) * scale
    times, kept = _distinct(spec.timesteps)
    return Teacher(images, spec, times, recorded[:-1][kept], recorded[-1], noise, scale, guided)


def record_images(images: Images, spec: SamplerSpec) -> Work[torch.Tensor]:
    """Draw images with a sampler, or read them from the cache.

    Args:
        images: what to draw.
        spec: the sampler.

    Returns:
        A generator of Progress whose result is the images (B, C, ...), on the CPU.
    """
    chunks, total = [], len(images.seeds)
    for first in range(0, total, _CHUNK):
        yield Progress("teacher", first, total, f"{spec.class_name} with {spec.calls} calls")
        chunks.append(_chunk(images.part(first, _CHUNK), spec, whole=False)[0])
    return torch.cat(chunks)


def _distinct(timesteps: Sequence[float]) -> tuple[tuple[float, ...], list[int]]:
    """Descending times and their calls. Of calls at one time the last counts: it has the corrected state."""
    kept: list[int] = []
    for call, time in enumerate(timesteps):
        while kept and timesteps[kept[-1]] <= time:
            kept.pop()
        kept.append(call)
    return tuple(timesteps[call] for call in kept), kept


def _chunk(images: Images, spec: SamplerSpec, *, whole: bool = True) -> torch.Tensor:
    """Trajectories (calls + 1, B, C, ...), or the images alone (1, B, C, ...)."""
    path = _path(images, spec, whole)
    if path.is_file():
        try:
            recorded = load_file(path)["trajectories"]
            mark_used(path)
            return recorded
        except (SafetensorError, OSError, KeyError):
            pass  # A damaged file is recorded again.
    recorded = run_teacher(images, spec)[0 if whole else -1 :]
    write_atomic(path, save({"trajectories": recorded.cpu().contiguous()}, {"what": _what(images, spec)}))
    return recorded.cpu()


def _path(images: Images, spec: SamplerSpec, whole: bool) -> Path:
    contract = images.contract
    key = json.dumps(
        [contract.model_digest, contract.guidance, contract.latent_shape, contract.dtype, images.guidance_scale,
         images.seeds, images.labels, spec.digest, _conditioning_digest(images), whole]
    )  # fmt: skip
    return cache_folder() / "teachers" / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"


def _conditioning_digest(images: Images) -> str:
    """Prompts change the conditioning without the model's digest."""
    digest = hashlib.sha256()
    for name, rows in sorted(images.model.conditioning(images.labels, images.contract.guidance).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()


def _what(images: Images, spec: SamplerSpec) -> str:
    return f"{len(images.seeds)} trajectories of {images.contract.model_class}, {spec.class_name} {spec.calls} calls"


@torch.inference_mode()
def run_teacher(images: Images, spec: SamplerSpec) -> torch.Tensor:
    """The network's inputs at every call, then the images: (calls + 1, B, C, ...)."""
    network, stepper = images.network(), SamplerStepper(spec)
    stepper.restart(len(images.seeds))
    latent = images.noise.to(network.device, network.sampler_dtype) * stepper.initial_scale
    recorded = []
    for call in range(spec.calls):
        scaled = stepper.scale_input(call, latent)
        recorded.append(scaled)
        latent = stepper.advance(call, network.guided(network(scaled, stepper.timestep(call))), latent)
    return torch.stack([*recorded, latent])
