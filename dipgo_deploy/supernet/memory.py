"""Memory of one gradient step of a SoftChain, estimated from one step for one image, and the memory that is free.

1. Until the backward pass, every step keeps what crosses to the next step: features, prediction and latent.
2. Without checkpoints, every step after the first also keeps all that autograd saves.
3. With checkpoints, the backward pass recomputes one step at a time, or one block of a step.
4. All of this grows with the batch. Parameters have no gradient and are not counted.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch.autograd.graph import saved_tensors_hooks

from dipgo_deploy.core.blocks import PREDICTION, BlockGraph, Kind
from dipgo_deploy.core.contract import Contract
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.supernet.chain import ChainStep, Checkpoint, SoftChain
from dipgo_deploy.supernet.network import GuidedNetwork
from dipgo_deploy.supernet.stepper import SamplerStepper
from dipgo_deploy.supernet.surgery import gated

__all__ = [
    "TRACE_MEMORY",
    "GradientMemory",
    "StepBytes",
    "free_bytes",
    "free_host_bytes",
    "gradient_memory",
    "measure_step",
    "recompute_for",
]

TRACE_MEMORY = 2.2
"""Upper bound for the peak memory of a trace and its cuts, in units of the model's weights."""

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class StepBytes:
    """Bytes of one differentiable step for one image.

    Attributes:
        crossing: passed to the next step.
        saved: saved by autograd in addition.
        outside: the part of ``saved`` outside every block, block inputs included.
        largest_block: the largest part of ``saved`` inside one block.
        largest: the largest single tensor of ``saved``.
    """

    crossing: int
    saved: int
    outside: int
    largest_block: int
    largest: int


@dataclass(frozen=True)
class GradientMemory:
    """Bytes of one gradient step of a whole chain.

    Attributes:
        checkpoint: what the backward pass recomputes.
        per_step_bytes: of one step during its backward pass.
        crossing_bytes: of everything that crosses from step to step.
        activations_bytes: largest sum of both at one time.
        peak_bytes: ``activations_bytes`` with gradients.
    """

    checkpoint: Checkpoint
    per_step_bytes: int
    crossing_bytes: int
    activations_bytes: int
    peak_bytes: int

    @property
    def text(self) -> str:
        """One line for a person to read."""
        parts = f"{_text(self.crossing_bytes)} between steps, {_text(self.per_step_bytes)} a step"
        return f"a gradient step holds {_text(self.peak_bytes)} with checkpoint {self.checkpoint} ({parts})"


def gradient_memory(step: StepBytes, called: int, batch: int, recompute: Checkpoint) -> GradientMemory:
    """Estimate the memory of a gradient step.

    Args:
        step: bytes of one step for one image.
        called: number of network calls, the first of which has no gradient.
        batch: number of images.
        recompute: what the backward pass recomputes.

    Returns:
        The estimate.
    """
    own = batch * (step.outside + step.largest_block if recompute == "block" else step.saved)
    crossing = called * batch * step.crossing
    kept = max(called - 1, 1) if recompute == "none" else 1
    activations = crossing + kept * own
    # Two more gradients are alive while the gradient of a tensor is computed: its reader's and another branch's.
    return GradientMemory(recompute, own, crossing, activations, activations + 2 * batch * step.largest)


def recompute_for(step: StepBytes, called: int, batch: int, limit: int) -> Checkpoint:
    """The mode with the least recomputation that fits into memory.

    Args:
        step: bytes of one step for one image.
        called: number of network calls.
        batch: number of images.
        limit: bytes.

    Returns:
        The mode, or ``block``, which needs the least memory, if none fits.
    """
    for recompute in get_args(Checkpoint):
        if gradient_memory(step, called, batch, recompute).peak_bytes <= limit:
            return recompute
    return "block"


def measure_step(model: LoadedModel, graph: BlockGraph, contract: Contract, kind: Kind) -> StepBytes:
    """Run two steps for one image, the second with gradients under half-open gates, and count bytes.

    Args:
        model: the model.
        graph: its blocks.
        contract: sampler and guidance.
        kind: whether features or residuals are reused.

    Returns:
        Bytes of the second step.
    """
    chain = SoftChain(model, graph, contract, kind, "none")
    network = GuidedNetwork(model, contract, model.conditioning([0], contract.guidance), contract.guidance_scale(None))
    latent = torch.randn(1, *contract.latent_shape, generator=torch.Generator().manual_seed(0))
    latent = latent.to(network.device, network.sampler_dtype)
    step = ChainStep(chain, network, SamplerStepper(contract.sampler).timestep(0), [True] * len(graph.blocks))
    before = step.first(latent)
    blocks, outside = _Storages(), _Storages()
    names = [name for name in graph.block_names if name != PREDICTION]
    with torch.enable_grad(), gated(model.module, names, blocks.gate), outside.saved():
        gates = torch.full((len(graph.blocks),), 0.5, device=network.device).requires_grad_()
        after = step.blended(latent.requires_grad_(), gates, before)
    crossing, known = _Storages(), _Storages()
    crossing.add(tensor for tensors in after.values() for tensor in tensors)
    known.add([gates, latent, *model.module.parameters(), *model.module.buffers()])
    known.add(tensor for tensors in before.values() for tensor in tensors)
    return _counted(crossing, known, blocks, outside, 2 * latent.nbytes)


@dataclass
class _Storages:
    """Distinct storages, and those of single blocks. They are held so that no address is used twice."""

    by_address: dict[int, torch.UntypedStorage] = field(default_factory=dict)
    parts: list[dict[int, torch.UntypedStorage]] = field(default_factory=list)

    def add(self, tensors: Iterable[torch.Tensor]) -> None:
        storages = [tensor.untyped_storage() for tensor in tensors]
        self.by_address |= {storage._cdata: storage for storage in storages}

    @contextmanager
    def saved(self) -> Iterator[None]:
        """Add what autograd saves inside the context. In nested contexts only the innermost one sees a tensor."""
        with saved_tensors_hooks(lambda tensor: self.add([tensor]), lambda _: None):
            yield

    def gate(self, block: str, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        inside = _Storages()
        with inside.saved():
            feature = forward(*args, **kwargs)
        self.by_address |= inside.by_address
        self.parts.append(inside.by_address)
        return feature


def _counted(crossing: _Storages, known: _Storages, blocks: _Storages, outside: _Storages, latents: int) -> StepBytes:
    saved = {**blocks.by_address, **outside.by_address}
    own = saved.keys() - crossing.by_address.keys() - known.by_address.keys()
    inside = [sum(part[key].nbytes() for key in part.keys() & own) for part in blocks.parts]
    return StepBytes(
        crossing=latents + sum(storage.nbytes() for storage in crossing.by_address.values()),
        saved=sum(saved[key].nbytes() for key in own),
        outside=sum(saved[key].nbytes() for key in own & outside.by_address.keys()),
        largest_block=max(inside, default=0),
        largest=max((saved[key].nbytes() for key in own), default=0),
    )


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, or of the host."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_host_bytes()


def free_host_bytes() -> int:
    """Free memory of the host, within the limit of the container that this process runs in."""
    return min(_host_bytes(), _cgroup_bytes(_CGROUP))


def _host_bytes() -> int:
    try:
        lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        # Other systems than Linux: half of the installed memory if the system reports it, otherwise 4 GiB.
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
        return pages * os.sysconf("SC_PAGE_SIZE") // 2 if pages else 4 << 30


def _cgroup_bytes(cgroup: Path) -> int:
    """Free memory of the control group. File cache counts as free, because the system reclaims it on demand."""
    try:
        limit, used = int((cgroup / "memory.max").read_text()), int((cgroup / "memory.current").read_text())
        cache = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        return limit - used + int(cache["inactive_file"])
    except (OSError, KeyError, ValueError):
        return 1 << 62  # no control group, or one without a limit


def _text(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
