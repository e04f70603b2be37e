"""LatencyTable: what the pieces of one model cost on one machine, measured, so that a program's time can be foretold.

A network call costs what its pieces cost, a constant, the values that cross its border and the weights that the caches
have lost since the same graph last ran; a combination a constant and the values it touches. The coefficients are fitted
to calls timed inside whole trajectories (runtime/profiling.py); what they foretell is in lowering/latency.py.
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
    """What calls cost, as fitted; every ``_ms`` is in milliseconds.

    Attributes:
        pieces_ms: of every piece of the BlockGraph by its index, with its weights in the caches.
        call_ms: of any network call, besides.
        border_ms_per_mib: of a MiB that enters or leaves a graph by a slot.
        cold_ms_per_mib: of a MiB of weights that has to be fetched again.
        cache_bytes: weights that other calls may touch before those of a graph count as lost.
        combine_ms, combine_ms_per_mib: of a combination, and of a MiB that it reads or writes.
        whole_over_calls: a whole run over the sum of its calls' medians.
        spread: root mean square of the relative error over the calls that were fitted.
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
        model_class, model_digest, granularity, patterns, dtype: the BlockGraph that the pieces belong to, or was
            converted from, where ``dtype`` is a half precision and that of the model is not.
        target: backend and device, such as ``onnxruntime-cpu``.
        batch, rows: images of a call, and rows of the network's batch.
        threads: threads within an operator; None where the backend chose.
        blocks_ms: by block, the sum over the pieces that a full step would not run without it, their weights fetched.
        forward_ms: of one call that computes everything, as foretold from the rest; where nothing is in the caches.
        environment: machine, versions and command.
        latent_shape: of one image; None in tables that were written before it was recorded.
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
        """sha256 over the costs that a search counts."""
        costs = (self.target, self.batch, self.pieces_ms, self.call_ms, self.cold_ms_per_mib)
        return hashlib.sha256(repr(costs).encode()).hexdigest()

    def prices_ms(self, graph: BlockGraph) -> tuple[float, ...]:
        """What every piece adds to a call that runs it, its weights fetched: distinct graphs push each other out.

        ``graph`` may be that in float32 where the table is of a half precision that it was converted to.
        """
        part = DTYPE_BYTES[self.dtype] / DTYPE_BYTES[graph.dtype]
        weights = (part * graph.weight_bytes_of([piece]) for piece in graph.pieces)
        return tuple(ms + self.cold_ms_per_mib * size / MIB for ms, size in zip(self.pieces_ms, weights, strict=True))


def check_table(table: LatencyTable, graph: BlockGraph, batch: int | None = None) -> None:
    """Refuse a table that was measured on another model, other blocks, another latent or another batch.

    Raises InputError for another model, other blocks or another latent, UsageError for another batch.
    """
    for name in ("model_class", "model_digest", "granularity", "patterns", "dtype"):
        ours, theirs = getattr(graph, name), getattr(table, name)
        if ours != theirs:
            raise InputError(
                f"the latency table was measured for {name} {_brief(theirs)}, {_brief(ours)} is wanted: profile that"
            )
    latent = tuple(graph.inputs[0].shape[1:])
    if table.latent_shape not in (None, latent):
        raise InputError(
            f"the latency table was measured for latents of shape {table.latent_shape}, {latent} is wanted: profile "
            "that"
        )
    if len(table.pieces_ms) != len(graph.pieces):
        raise InputError(
            f"the latency table has {len(table.pieces_ms)} pieces, the model {len(graph.pieces)}: profile it anew"
        )
    if batch is not None and batch != table.batch:
        raise UsageError(
            f"the latency table was measured with {table.batch} images, {batch} are asked for: profile with --batch "
            f"{batch}"
        )


def _brief(value: object) -> str:
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
