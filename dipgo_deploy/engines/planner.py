"""Plan: the memory and the time of a bundle's engines in either layout, before any engine is built.

1. Engines do not share weights in device memory, so a layout holds the weights of each of its graphs. The code of an
   engine adds a constant for every node of its graph. Sizes are estimates, printed with "≈".
2. The program counts slots exactly. Activations are one buffer, as large as the graph that needs most. Both are
   counted at the longest text that the contract allows.
3. If the memory cannot hold all engines, the least recently used engine is evicted. The plan counts reloads of a run.
4. Time comes from a latency table, if there is one.

The plan recommends the fastest layout that fits as a whole, without a table the layout with fewer calls. If two times
differ by less than the error of the table, it recommends none. If neither layout fits as a whole, it recommends the
layout that reloads least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

from dipgo_deploy.bundle.bundle import Bundle
from dipgo_deploy.bundle.half_precision import check_convertible
from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.engine import TargetName
from dipgo_deploy.core.errors import MissingError
from dipgo_deploy.core.latency import check_table
from dipgo_deploy.core.precision import HalfType
from dipgo_deploy.core.program import Layout, Program
from dipgo_deploy.core.tensors import MIB, TensorSpec
from dipgo_deploy.engines.estimate import WORKSPACE_BYTES, estimated_engine_bytes
from dipgo_deploy.engines.options import PlanOptions
from dipgo_deploy.graphs.activations import activation_bytes
from dipgo_deploy.graphs.half_graph import half_blocks
from dipgo_deploy.lowering import LowerOptions, lower
from dipgo_deploy.lowering.latency import predict_ms
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.runtime.engine_cache import EngineLoads, engine_loads

__all__ = ["LayoutPlan", "Plan", "plan"]


@dataclass(frozen=True)
class LayoutPlan:
    """One layout: counts, bytes and estimated time.

    Attributes:
        layout: ``subnets`` or ``segments``.
        engines: number of engines.
        calls: engine calls of a run.
        weight_bytes: weights of every graph. Weights that several graphs share count once for each.
        engine_bytes: estimated size of all engines: weights and code.
        slot_bytes: features, latents and conditioning, exact.
        activation_bytes: estimated memory inside an engine.
        device_bytes: all engines, slots and activations together.
        least_bytes: the same with one engine at a time.
        reload: engines that a run loads again under the limit, None where an engine does not fit.
        latency_ms: estimated time of a run without reloads, None without a latency table.
    """

    layout: Layout
    engines: int
    calls: int
    weight_bytes: int
    engine_bytes: int
    slot_bytes: int
    activation_bytes: int
    device_bytes: int
    least_bytes: int
    reload: EngineLoads | None
    latency_ms: float | None


@dataclass(frozen=True)
class Plan:
    """Both layouts for ``batch`` images, and the recommended layout with the reason.

    Attributes:
        batch: images per call.
        gpu_memory: bytes that all engines may take, None without a limit.
        layouts: both layouts.
        recommended: None if no layout fits, or if both fit and the latency table cannot tell which is faster.
        reason: one line.
        precision, target: of the engines.
        latency_error: relative error of the estimated times, a root mean square. None without a latency table.
    """

    batch: int
    gpu_memory: int | None
    layouts: tuple[LayoutPlan, ...]
    recommended: Layout | None
    reason: str
    precision: str
    target: TargetName
    latency_error: float | None = None

    @property
    def fits(self) -> bool:
        """Whether a layout fits into the memory, at least with one engine loaded at a time."""
        return any(layout.reload is not None for layout in self.layouts)


def plan(bundle: Bundle, options: PlanOptions = PlanOptions()) -> Plan:
    """Estimate memory and time of a bundle's engines.

    Args:
        bundle: the bundle. No engine is needed.
        options: memory, batch, precision and latency table.

    Returns:
        Both layouts, and the recommended layout.

    Raises:
        InputError: the latency table was measured on another model.
        UsageError: another batch than the table's, or a precision that the bundle cannot be converted to.
    """
    table, precision = options.latency, options.precision or bundle.contract.dtype
    check_convertible(bundle, options.precision)
    if table is not None:
        check_table(table, replace(bundle.blocks, dtype=precision), options.batch)
    batch = options.batch or (table.batch if table else bundle.contract.batch.opt)
    layouts = tuple(_layout_plan(bundle, layout, batch, options) for layout in get_args(Layout))
    recommended, reason = _recommendation(layouts, options)
    error = None if table is None else table.spread
    return Plan(batch, options.gpu_memory, layouts, recommended, reason, precision, options.target, error)


def _layout_plan(bundle: Bundle, layout: Layout, batch: int, options: PlanOptions) -> LayoutPlan:
    is_own = bundle.program.layout == layout
    graphs = (bundle.compiled if is_own else bundle.compile(bundle.schedule, layout)).graphs
    blocks = _blocks_in(bundle, options.precision)
    program = _lower(bundle, blocks, layout)
    sizes = {
        graph.name: estimated_engine_bytes(graphs[graph.name], graph.weight_bytes, options.target)
        for graph in program.graphs
    }
    largest = program.contract.largest_sizes(batch)
    slots = sum(slot.nbytes(largest) for slot in program.slots)
    specs = {name: _spec_in(spec, options.precision) for name, spec in bundle.value_specs.items()}
    activations = activation_bytes(graphs.values(), specs, largest) + WORKSPACE_BYTES
    pinned = slots + activations
    return LayoutPlan(
        layout=layout,
        engines=len(program.graphs),
        calls=len(program.runs),
        weight_bytes=sum(graph.weight_bytes for graph in program.graphs),
        engine_bytes=sum(sizes.values()),
        slot_bytes=slots,
        activation_bytes=activations,
        device_bytes=sum(sizes.values()) + pinned,
        least_bytes=max(sizes.values(), default=0) + pinned,
        reload=_reload(program, sizes, options.gpu_memory, pinned),
        latency_ms=None if options.latency is None else predict_ms(program, blocks, options.latency),
    )


def _blocks_in(bundle: Bundle, precision: HalfType | None) -> BlockGraph:
    """The bundle's blocks in a half precision that it may not have been converted to yet, fallback nodes left out."""
    if precision in (None, bundle.contract.dtype):
        return bundle.blocks
    assert precision is not None
    halved = {name: size // 2 for name, size in bundle.blocks.weights.items()}
    return half_blocks(bundle.blocks, precision, (), halved)


def _lower(bundle: Bundle, blocks: BlockGraph, layout: Layout) -> Program:
    schedule = replace(bundle.schedule, contract=replace(bundle.schedule.contract, dtype=blocks.dtype))
    share = bundle.program.share_graphs and bundle.program.layout == layout
    options = LowerOptions(layout, share_graphs=share)
    return lower(schedule, blocks, read_sampler(schedule.contract.sampler), options)


def _spec_in(spec: TensorSpec, precision: HalfType | None) -> TensorSpec:
    return replace(spec, dtype=precision) if precision is not None and spec.dtype == "float32" else spec


def _reload(program: Program, sizes: Mapping[str, int], limit: int | None, pinned: int) -> EngineLoads | None:
    try:
        return engine_loads((run.graph for run in program.runs), sizes, limit, pinned)
    except MissingError:
        return None


def _recommendation(layouts: tuple[LayoutPlan, ...], options: PlanOptions) -> tuple[Layout | None, str]:
    fitting = [layout for layout in layouts if layout.reload is not None]
    if not fitting:
        least = min(layout.least_bytes for layout in layouts)
        return None, f"no layout fits: even one engine at a time needs ≈ {math.ceil(10 * least / MIB) / 10:,.1f} MiB"
    whole = [layout for layout in fitting if layout.reload == EngineLoads(0, 0)]
    if not whole:
        best = min(fitting, key=lambda layout: layout.reload.bytes if layout.reload else 0)
        return best.layout, "no layout fits as a whole: this one reloads least in a run"
    if len(whole) == 1 < len(layouts):
        return whole[0].layout, "the only layout whose engines fit together"
    if options.latency is not None:
        return _faster(whole, options.latency.spread)
    best = min(whole, key=lambda layout: layout.calls)
    return best.layout, "both fit: this one makes fewer calls; a latency table would say which is faster"


def _faster(layouts: list[LayoutPlan], error: float) -> tuple[Layout | None, str]:
    """The fastest layout, unless the next one is within the error of the estimates."""
    best, second, *_ = sorted(layouts, key=lambda layout: layout.latency_ms or 0.0)
    gain = (second.latency_ms or 0.0) / max(best.latency_ms or 0.0, 1e-12) - 1
    if gain > error:
        return best.layout, f"both fit: this one is estimated to be {gain:.1%} faster"
    return None, (
        f"both fit, and their estimated times differ by {gain:.1%}, which is within the error of the latency table "
        f"({error:.0%}): profile again on an idle machine, or build both and bench them"
    )
