"""Engines that are not built yet: their program in the asked precision, and the bytes of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dipgo_deploy.core.blocks import BlockGraph
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.precision import HalfType, is_half
from dipgo_deploy.core.program import Layout, Program
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.graphs.activations import activation_bytes, master_specs
from dipgo_deploy.graphs.folding import folded_values
from dipgo_deploy.graphs.kernels import kernel_counts
from dipgo_deploy.graphs.precision import half_blocks
from dipgo_deploy.graphs.variant import Variant
from dipgo_deploy.lowering import LowerOptions, lower, shares_graphs
from dipgo_deploy.models.sampler_coefficients import read_sampler
from dipgo_deploy.runtime.loaded import LoadedBundle
from dipgo_deploy.trt.job import EngineJob
from dipgo_deploy.trt.sizes import SizeFit, code_bytes, size_fit, with_profile

__all__ = ["Foretold", "foretell", "job_bytes"]


@dataclass(frozen=True)
class Foretold:
    """A program and its blocks in the asked precision, its graphs in the bundle's.

    ``specs`` are those of every value in the asked precision.
    """

    program: Program
    blocks: BlockGraph
    graphs: Mapping[str, bytes]
    specs: Mapping[str, TensorSpec]

    def activation_bytes(self, rows: int) -> int:
        """Memory of the graph that needs most, for ``rows`` rows."""
        return activation_bytes(self.graphs.values(), self.specs, rows)

    def engine_bytes(self, fit: SizeFit | None, has_profile: bool = True, has_weights: bool = True) -> dict[str, int]:
        """Bytes of every graph's engine; ``has_profile`` for engines that take a range of batches.

        Without a ``fit`` they are the weights alone, with all that the builder would fold.
        """
        weights = {graph.name: graph.weight_bytes if has_weights else 0 for graph in self.program.graphs}
        return _bytes(weights, self.graphs, self.specs, fit, has_profile)


def foretell(bundle: LoadedBundle, layout: Layout, precision: HalfType | None = None) -> Foretold:
    """The engines of ``bundle`` in a layout and precision, None for its own; what an island would keep is left out.

    Raises UsageError for a half precision of a bundle that was exported in another one.
    """
    own, compiled = bundle.manifest.contract.dtype, bundle.compiled
    if bundle.program.layout != layout:
        compiled = bundle.compile(bundle.schedule, layout)
    if precision in (None, own):
        return Foretold(compiled.program, bundle.blocks, compiled.graphs, bundle.value_specs)
    if own != "float32":
        raise UsageError(f"the bundle is in {own}, {precision} is wanted: export it in float32, or build as it is")
    assert precision is not None
    weights = {name: size // 2 for name, size in bundle.blocks.weights.items()}
    blocks = half_blocks(bundle.blocks, precision, (), weights)
    schedule = replace(bundle.schedule, contract=replace(bundle.schedule.contract, dtype=precision))
    shares = bundle.program.layout == layout and shares_graphs(bundle.program, bundle.schedule, bundle.blocks)
    program = lower(
        schedule, blocks, read_sampler(schedule.contract.sampler), LowerOptions(layout, share_graphs=shares)
    )
    specs = {name: _halved(spec, precision) for name, spec in bundle.value_specs.items()}
    return Foretold(program, blocks, compiled.graphs, specs)


def job_bytes(bundle: LoadedBundle, jobs: Sequence[EngineJob], variant: Variant | None = None) -> dict[str, int]:
    """Foretold bytes of every job's engine, which share target, precision and flags.

    Kernels are counted in the bundle's graphs; in those of its ``variant`` where the bundle is in half precision
    itself, and its graphs may be divided otherwise.
    """
    first = jobs[0]
    fit = size_fit(first.target, first.precision, first.version)
    weights = {job.graph: 0 if job.flags.strip else job.weight_bytes for job in jobs}
    graphs, specs = bundle.compiled.graphs, bundle.value_specs
    if variant is not None and is_half(bundle.manifest.contract.dtype):
        graphs, specs = {name: path.read_bytes() for name, path in variant.graphs.items()}, master_specs(variant.master)
    return _bytes(weights, graphs, specs, fit, not first.flags.static)


def _bytes(
    weights: Mapping[str, int],
    graphs: Mapping[str, bytes],
    specs: Mapping[str, TensorSpec],
    fit: SizeFit | None,
    has_profile: bool,
) -> dict[str, int]:
    """Weights of each graph and, where there is a ``fit``, its code, without what the builder folds."""
    if fit is None:
        return dict(weights)
    half, found = is_half(fit.precision), {}
    for name, size in weights.items():
        folded = (2 if half else 4) * folded_values(graphs[name], specs)
        counts = with_profile(kernel_counts(graphs[name], specs, half), has_profile)
        found[name] = max(size - folded, 0) + code_bytes(counts, fit)
    return found


def _halved(spec: TensorSpec, precision: HalfType) -> TensorSpec:
    return replace(spec, dtype=precision) if spec.dtype == "float32" else spec
