"""LatencyTable: the measured cost of one model's pieces on one machine, from which a program's time is estimated.

1. The cost of a network call is the sum over its pieces, plus a constant, plus the transfer of values through slots,
   plus the reload of weights that were evicted from the caches since the same graph last ran.
2. The cost of a combination is a constant, plus the transfer of the values that it reads and writes.

`engines.profile` fits the coefficients to calls that were timed inside whole trajectories. `lowering.latency` estimates
the time of a program from them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.tensors import DTYPE_BYTES, MIB

__all__ = ["LatencyCosts", "LatencyTable", "check_table"]


@dataclass(frozen=True)
class LatencyCosts:
    """Fitted costs of calls. Every ``_ms`` is in milliseconds.

    Attributes:
        pieces_ms: time of every piece of the BlockGraph by its index, with its weights in the caches.
        call_ms: fixed time of a network call.
        border_ms_per_mib: time per MiB that enters or leaves a graph through a slot.
        cold_ms_per_mib: time per MiB of weights that has to be fetched again.
        cache_bytes: weight bytes that other calls may touch before the weights of a graph count as lost.
        combine_ms, combine_ms_per_mib: fixed time of a combination, and time per MiB that it reads or writes.
        whole_over_calls: time of a whole run divided by the sum of its calls' medians.
        spread: root mean square of the relative error over the fitted calls.
    """

    pieces_ms: tuple[float, ...]
    call_ms: float
    border_ms_per_mib: float
    cold_ms_per_mib: float
    cache_bytes: int
    combine_ms: float
    combine_ms_per_mib: float
    whole_over_calls: float
    spread: float


@dataclass(frozen=True, kw_only=True)
class LatencyTable(LatencyCosts):
    """Costs of one model's pieces on one machine.

    Attributes:
        model_class, model_digest, granularity, patterns, dtype: the BlockGraph that the pieces belong to. If
            ``dtype`` is a half precision, that BlockGraph may have been converted from a model in float32.
        target: backend and device, such as ``onnxruntime-cpu``.
        batch, rows: images per call, and rows of the network's batch.
        threads: threads per operator. None if the backend chose the number.
        blocks_ms: for each block, the sum over the pieces that a full step needs only for that block. Weights are
            fetched again.
        forward_ms: time of one full call with cold caches, estimated from the other costs.
        environment: machine, versions and command.
        latent_shape: the latent of one image. None in tables of older programs.
    """

    model_class: str
    model_digest: str
    granularity: str
    patterns: tuple[str, ...]
    dtype: str
    target: str
    batch: int
    rows: int
    threads: int | None
    blocks_ms: Mapping[str, float]
    forward_ms: float
    environment: Mapping[str, Any] = field(default_factory=dict)
    latent_shape: tuple[int, ...] | None = None

    @property
    def digest(self) -> str:
        """sha256 over the costs that a search uses."""
        costs = (self.target, self.batch, self.pieces_ms, self.call_ms, self.cold_ms_per_mib)
        return hashlib.sha256(repr(costs).encode()).hexdigest()

    def prices_ms(self, graph: BlockGraph) -> tuple[float, ...]:
        """Milliseconds that every piece adds to a call.

        Weights count as fetched again, because the graphs of a program evict each other's weights from the caches.

        Args:
            graph: the blocks of the table, or the float32 blocks that they were converted from.

        Returns:
            One price per piece.
        """
        part = DTYPE_BYTES[self.dtype] / DTYPE_BYTES[graph.dtype]
        weights = (part * graph.weight_bytes_of([piece]) for piece in graph.pieces)
        return tuple(ms + self.cold_ms_per_mib * size / MIB for ms, size in zip(self.pieces_ms, weights, strict=True))


def check_table(table: LatencyTable, graph: BlockGraph, batch: int | None = None) -> None:
    """Check that a table was measured on a model.

    Args:
        table: the latency table.
        graph: the blocks of the model.
        batch: images per call. None accepts any number.

    Raises:
        InputError: the table was measured on another model, other blocks or another latent.
        UsageError: the table was measured with another batch.
    """
    for name in ("model_class", "model_digest", "granularity", "patterns", "dtype"):
        ours, theirs = getattr(graph, name), getattr(table, name)
        if ours != theirs:
            raise InputError(
                f"the latency table was measured for {name} {_brief(theirs)}, expected {_brief(ours)}: profile this "
                "model"
            )
    latent = tuple(graph.inputs[0].shape[1:])
    if table.latent_shape not in (None, latent):
        raise InputError(
            f"the latency table was measured for latents of shape {table.latent_shape}, expected {latent}: profile "
            "this size"
        )
    if len(table.pieces_ms) != len(graph.pieces):
        raise InputError(
            f"the latency table has {len(table.pieces_ms)} pieces, the model {len(graph.pieces)}: profile it again"
        )
    if batch is not None and batch != table.batch:
        raise UsageError(
            f"the latency table was measured with batch {table.batch}, requested is batch {batch}: profile with batch "
            f"{batch}"
        )


def _brief(value: object) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
