"""From timed calls to a latency table: least squares without negative costs.

1. An observation is one call of one program at its place in the trajectory, as the median over the rounds.
2. Squared errors are weighted by 1 / time. Absolute errors would ignore small calls, relative errors large calls.
3. Several cache sizes are tried, from 0 to more than any program touches. The size with the least error is kept.
4. The cost of a block is that of the pieces that a full step runs for this block alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LinearRegression

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.latency import LatencyCosts, LatencyTable
from dipgo_deploy.core.program import Combine, Program, Run
from dipgo_deploy.core.tensors import MIB
from dipgo_deploy.engines.options import ProfileOptions
from dipgo_deploy.lowering.latency import combine_features, lost_mib, run_features
from dipgo_deploy.runtime.environment import environment

__all__ = ["TimedProgram", "fit_latencies", "latency_table"]

_CACHE_SIZES = 9
"""Number of cache sizes that are tried, each twice the previous size. A cache of the largest size loses nothing."""


@dataclass(frozen=True)
class TimedProgram:
    """A program, the median time in ms of each of its calls, and of a whole run."""

    program: Program
    calls_ms: tuple[float, ...]
    whole_ms: float


def fit_latencies(timed: Sequence[TimedProgram], blocks: BlockGraph, batch: int) -> LatencyCosts:
    """Fit costs to timed programs.

    Args:
        timed: programs with their times.
        blocks: the blocks of the model that ran.
        batch: images of a call.

    Returns:
        The costs, none of them negative.
    """
    warm_features = np.concatenate([run_features(program.program, blocks, batch) for program in timed])
    runs_ms = np.concatenate([_times(program, Run) for program in timed])
    fits = []
    for cache_bytes in _cache_sizes(timed):
        lost = np.concatenate([lost_mib(program.program, cache_bytes) for program in timed])
        features = np.column_stack([warm_features, lost])
        costs = _non_negative(features, runs_ms)
        fits.append((_error(features @ costs, runs_ms), cache_bytes, costs, features))
    _, cache_bytes, costs, features = min(fits, key=lambda fit: fit[0])
    *pieces, call, border, cold = (float(cost) for cost in costs)
    combines = _non_negative(
        np.concatenate([combine_features(program.program, batch) for program in timed]),
        np.concatenate([_times(program, Combine) for program in timed]),
    )
    calls_ms = sum(sum(program.calls_ms) for program in timed)
    return LatencyCosts(
        pieces_ms=tuple(pieces),
        call_ms=call,
        border_ms_per_mib=border,
        cold_ms_per_mib=cold,
        cache_bytes=cache_bytes,
        combine_ms=float(combines[0]),
        combine_ms_per_mib=float(combines[1]),
        whole_over_calls=sum(program.whole_ms for program in timed) / calls_ms,
        spread=float(np.sqrt(np.mean((features @ costs / runs_ms - 1) ** 2))),
    )


def _times(timed: TimedProgram, kind: type) -> NDArray[np.float64]:
    pairs = zip(timed.program.calls, timed.calls_ms, strict=True)
    return np.array([ms for call, ms in pairs if isinstance(call, kind)], dtype=np.float64)


def _cache_sizes(timed: Sequence[TimedProgram]) -> list[int]:
    """Cache sizes to try: none, and from more than the largest program touches downwards in halves."""
    largest = max(sum(graph.weight_bytes for graph in program.program.graphs) for program in timed)
    return [0, *(int(2 * largest / 2**step) // MIB * MIB + MIB for step in range(_CACHE_SIZES))]


def _non_negative(features: NDArray[np.float64], times: NDArray[np.float64]) -> NDArray[np.float64]:
    fit = LinearRegression(fit_intercept=False, positive=True)
    costs: NDArray[np.float64] = fit.fit(features, times, sample_weight=1 / times).coef_
    return costs


def _error(estimates: NDArray[np.float64], times: NDArray[np.float64]) -> float:
    return float(np.mean((estimates - times) ** 2 / times))


def latency_table(timed: Sequence[TimedProgram], blocks: BlockGraph, options: ProfileOptions) -> LatencyTable:
    """The latency table of timed programs.

    Args:
        timed: programs with their times.
        blocks: the blocks of the model that ran.
        options: of the profile, for the record.

    Returns:
        Fitted costs, and the cost of each block.
    """
    costs = fit_latencies(timed, blocks, options.batch)
    contract = timed[0].program.contract
    table = LatencyTable(
        model_class=blocks.model_class,
        model_digest=blocks.model_digest,
        granularity=blocks.granularity,
        patterns=blocks.patterns,
        dtype=blocks.dtype,
        target=options.target,
        batch=options.batch,
        rows=options.batch * contract.rows_per_image,
        threads=options.run.threads,
        blocks_ms={},
        forward_ms=0.0,
        environment=_environment(options),
        latent_shape=contract.latent_shape,
        **asdict(costs),
    )
    return _with_blocks(table, blocks)


def _with_blocks(table: LatencyTable, blocks: BlockGraph) -> LatencyTable:
    """Add the cost of every block, see 4 above."""
    prices = table.prices_ms(blocks)
    owners: dict[int, set[str | None]] = {
        piece.index: {blocks.block_of_feature.get(value) for value in piece.gives} for piece in blocks.pieces
    }
    by_block = {
        name: sum(prices[index] for index, owner in owners.items() if owner == {name}) for name in blocks.block_names
    }
    return replace(table, blocks_ms=by_block, forward_ms=sum(prices) + table.call_ms)


def _environment(options: ProfileOptions) -> Mapping[str, Any]:
    settings = asdict(options)
    return {**environment(), "command": settings.pop("command"), "profile": settings}
