"""Plan: what a bundle will take as engines, in either layout, before any is built.

1. Engines do not share weights in device memory: a layout holds the weights of each of its graphs. What an engine
   holds besides, code, is foretold from engines that were measured (trt/sizes.py), and what it folds is left out.
2. Slots are counted by the program; activations are one buffer, as large as the graph that needs most, and the
   workspace that every context of the target has been seen to take.
3. Where a budget holds not all engines, the least recently used one goes: what a run then loads is counted.
4. Time comes from a latency table, where there is one.
Recommended is the quickest layout that fits whole, without a table the one of fewer calls; else the one that loads
least.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import get_args

from dipgo_deploy.core.engine import TargetName
from dipgo_deploy.core.errors import MissingError, UsageError
from dipgo_deploy.core.latency import MIB, LatencyTable, check_table
from dipgo_deploy.core.precision import HalfType
from dipgo_deploy.core.program import Layout, Program, memory_bytes
from dipgo_deploy.lowering.latency import predict_ms
from dipgo_deploy.runtime.foretold import foretell
from dipgo_deploy.runtime.loaded import LoadedBundle
from dipgo_deploy.runtime.residency import Traffic, traffic
from dipgo_deploy.trt.sizes import SizeFit, size_fit

__all__ = ["LayoutPlan", "Plan", "PlanOptions", "plan"]


@dataclass(frozen=True)
class PlanOptions:
    """``gpu_memory`` in bytes, None for no limit; images of a call; a latency table, whose batch is then taken.

    ``precision`` None takes the bundle's own; ``target`` is the library whose engines are foretold. Raises UsageError
    for a memory or batch below 1.
    """

    gpu_memory: int | None = None
    batch: int | None = None
    table: LatencyTable | None = None
    precision: HalfType | None = None
    target: TargetName = "rtx"

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("gpu_memory", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} {value} makes no sense: give 1 or more")


@dataclass(frozen=True)
class LayoutPlan:
    """One layout: counts, bytes and foretold time.

    ``weight_bytes`` sums the weights of every graph, those that several share once for each; ``engine_bytes`` is the
    size of the files, by which the runtime keeps a budget: weights as the builder folds them, and code, as far as both
    are known.
    ``device_bytes`` is all of it with slots and activations, ``least_bytes`` with one engine at a time. ``reload`` is
    what a run loads under the budget, None where an engine does not fit. ``latency_ms`` is None without a table; it
    leaves reloading out.
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
    reload: Traffic | None
    latency_ms: float | None


@dataclass(frozen=True)
class Plan:
    """Both layouts for ``batch`` images, the recommended one (None where none fits) and why.

    ``sizes`` is what the bytes of code were fitted to, None where nothing of the target was measured.
    """

    batch: int
    gpu_memory: int | None
    layouts: tuple[LayoutPlan, ...]
    recommended: Layout | None
    reason: str
    precision: str
    sizes: str | None


def plan(bundle: LoadedBundle, options: PlanOptions = PlanOptions()) -> Plan:
    """Foretell memory and time of ``bundle`` as engines.

    Raises InputError where the table is another model's, UsageError where its batch is not the asked one.
    """
    table = options.table
    precision = options.precision or bundle.manifest.contract.dtype
    if table is not None:
        check_table(table, replace(bundle.blocks, dtype=precision), options.batch)
    batch = options.batch or (table.batch if table else bundle.manifest.contract.batch.opt)
    fit = size_fit(options.target, precision)
    layouts = tuple(_layout(bundle, layout, batch, options, fit) for layout in get_args(Layout))
    chosen, reason = _recommended(layouts, options)
    sizes = None if fit is None else f"{fit.target} {fit.version}, {fit.source}"
    return Plan(batch, options.gpu_memory, layouts, chosen, reason, precision, sizes)


def _layout(bundle: LoadedBundle, layout: Layout, batch: int, options: PlanOptions, fit: SizeFit | None) -> LayoutPlan:
    foretold = foretell(bundle, layout, options.precision)
    program = foretold.program
    sizes = foretold.engine_bytes(fit)
    slots = memory_bytes(program, batch)["slots"]
    activations = foretold.activation_bytes(batch * program.contract.rows_per_image)
    activations += 0 if fit is None else fit.workspace_bytes
    total, pinned = sum(sizes.values()), slots + activations
    return LayoutPlan(
        layout=layout,
        engines=len(program.graphs),
        calls=len(program.runs),
        weight_bytes=sum(graph.weight_bytes for graph in program.graphs),
        engine_bytes=total,
        slot_bytes=slots,
        activation_bytes=activations,
        device_bytes=total + pinned,
        least_bytes=max(sizes.values(), default=0) + pinned,
        reload=_reload(program, sizes, options.gpu_memory, pinned),
        latency_ms=None if options.table is None else predict_ms(program, foretold.blocks, options.table),
    )


def _reload(program: Program, sizes: Mapping[str, int], budget: int | None, pinned: int) -> Traffic | None:
    try:
        return traffic((run.graph for run in program.runs), sizes, budget, pinned)
    except MissingError:
        return None


def _recommended(layouts: tuple[LayoutPlan, ...], options: PlanOptions) -> tuple[Layout | None, str]:
    fitting = [one for one in layouts if one.reload is not None]
    if not fitting:
        least = min(one.least_bytes for one in layouts)
        return None, f"no layout fits: even one engine at a time needs {math.ceil(10 * least / MIB) / 10:,.1f} MiB"
    whole = [one for one in fitting if one.reload == Traffic(0, 0)]
    if not whole:
        best = min(fitting, key=lambda one: one.reload.bytes if one.reload else 0)
        return best.layout, "no layout fits whole: this one loads least in a run"
    if len(whole) == 1 < len(layouts):
        return whole[0].layout, "the only layout whose engines fit together"
    if options.table is not None:
        best = min(whole, key=lambda one: one.latency_ms or 0.0)
        return best.layout, "both fit: this one is foretold to be quicker"
    best = min(whole, key=lambda one: one.calls)
    return best.layout, "both fit: this one makes fewer calls; a latency table would say which is quicker"
