"""Search for fp32 fallback nodes: the nodes that must stay in float32, found on real trajectories.

1. The float32 trajectory is recorded, and the network's inputs at some of its steps.
2. Range: if a value exceeds half of the largest number of the half precision, the nodes that write or read the value
   stay in float32.
3. Error: everything is rounded to half precision (graphs/rounding.py). The first piece in execution order whose values
   leave the tolerance becomes fallback nodes. This repeats until no piece leaves the tolerance.
4. The whole schedule runs rounded, once with every graph fed with float32 slots, and once on its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain

import numpy as np

from dipgo_deploy.bundle.bundle import Bundle, CompiledProgram
from dipgo_deploy.core.errors import GateError
from dipgo_deploy.core.precision import FallbackNodes, HalfType, PrecisionRecord
from dipgo_deploy.core.program import TIMESTEP, Run
from dipgo_deploy.core.progress import Progress, Work
from dipgo_deploy.engines.options import FallbackOptions
from dipgo_deploy.graphs.cut import MASTER_FILE
from dipgo_deploy.graphs.half_probe import RANGE_SUFFIX, HalfProbe
from dipgo_deploy.runtime.generate import Inputs, run_inputs
from dipgo_deploy.runtime.open import onnxruntime_class, open_session
from dipgo_deploy.runtime.session import Session
from dipgo_deploy.verify.deviation import local_deviations, record_run, relative_difference

__all__ = ["LARGEST", "TOLERANCE", "find_fallback_nodes"]

LARGEST = {"float16": 65504.0, "bfloat16": 3.3895e38}
"""The largest finite number of each half precision."""

TOLERANCE = {"float16": 2e-2, "bfloat16": 5e-2}
"""Allowed deviation of a graph, relative to the largest value of the slot."""

_FREE_FACTOR = 10.0
"""The whole trajectory may deviate by this many times the tolerance of a graph."""

_RANGE_MARGIN = 2.0
"""Values stay below the largest number by this factor, because other seeds reach further."""

_STAGE = "searching fp32 fallback nodes"


def find_fallback_nodes(
    bundle: Bundle, dtype: HalfType, source: str, options: FallbackOptions = FallbackOptions()
) -> Work[PrecisionRecord]:
    """Search the nodes of ``bundle`` that must stay in float32.

    Args:
        bundle: a bundle in float32.
        dtype: the half precision.
        source: digest of everything that the search depends on, for the record.
        options: images, steps and tolerance.

    Returns:
        The record of the search. The generator yields Progress.

    Raises:
        GateError: half precision cannot hold the tolerance, or a number is not finite in float32.
    """
    search = _Search(bundle, dtype, options)
    yield Progress(_STAGE, 0, 4, "recording the trajectory in float32")
    search.record_trajectory()
    yield Progress(_STAGE, 1, 4, "measuring ranges")
    search.add_by_range()
    for block in search.add_by_error():
        yield Progress(_STAGE, 2, 4, f"{block} stays in float32")
    yield Progress(_STAGE, 3, 4, "running the schedule in half precision")
    return search.evaluate(source)


class _Search:
    """The state of one search: the reference trajectory and the fallback nodes so far."""

    def __init__(self, bundle: Bundle, dtype: HalfType, options: FallbackOptions) -> None:
        self._bundle, self._dtype, self._options = bundle, dtype, options
        contract = bundle.contract
        self._tolerance = options.tolerance or TOLERANCE[dtype]
        self._scale = contract.guidance_scale(None)
        self._probe = HalfProbe(bundle.denoiser / MASTER_FILE, bundle.blocks, dtype)
        self._inputs = run_inputs(bundle.model, contract, range(options.seed, options.seed + options.images))
        self._groups: list[FallbackNodes] = []
        self._fp32_tensors: tuple[str, ...] = ()

    @property
    def _fp32_nodes(self) -> set[str]:
        return {*self._probe.always_fp32, *chain.from_iterable(group.nodes for group in self._groups)}

    def record_trajectory(self) -> None:
        """Record the float32 trajectory, and inputs of the whole network at steps spread over it."""
        session = self._open(self._bundle.compiled)
        self._reference = record_run(session, self._inputs, self._options.seed)
        if not np.isfinite(self._reference.image).all():
            raise GateError("the float32 trajectory is not finite: verify the bundle before you build engines of it")
        feeds = _network_inputs(session, self._inputs, self._options.seed, self._probe.inputs)
        if not feeds:
            raise GateError("no step of this schedule runs the whole network: export a schedule whose first step does")
        places = np.linspace(0, len(feeds) - 1, min(self._options.steps, len(feeds)))
        self._feeds = [feeds[round(place)] for place in places]

    def add_by_range(self) -> None:
        """Add nodes around values beyond the half precision, and keep the float32 features for the errors."""
        limit = LARGEST[self._dtype] / _RANGE_MARGIN
        ranges: dict[str, float] = dict(self._probe.weights_beyond(limit))
        self._features = []
        for outputs in self._run(self._probe.measured()):
            self._features.append({name: outputs[name] for name in self._probe.features})
            for name, value in outputs.items():
                if name.endswith(RANGE_SUFFIX):
                    tensor = name.removesuffix(RANGE_SUFFIX)
                    ranges[tensor] = max(float(value), ranges.get(tensor, 0.0))
        beyond = {name: size for name, size in ranges.items() if size > limit or not np.isfinite(size)}
        if infinite := [name for name, size in beyond.items() if not np.isfinite(size)]:
            raise GateError(
                f"{infinite[0]} is not finite in float32 either: verify the bundle before you build engines of it"
            )
        self._fp32_tensors = tuple(name for name in self._bundle.blocks.values if name in beyond)
        for piece, nodes in self._probe.around(beyond).items():
            size, name = max((size, name) for name, size in beyond.items() if piece in self._probe.around([name]))
            reason = f"{name} reaches {size:.3g}, {self._dtype} holds {LARGEST[self._dtype]:.6g}"
            self._groups.append(FallbackNodes(self._probe.block(piece), nodes, reason))

    def add_by_error(self) -> Iterator[str]:
        """Add whole pieces, first to last, until every feature holds the tolerance. Yields the block of each."""
        added: set[int] = set()
        while (error := self._first_error(added)) is not None:
            piece, deviation, feature = error
            added.add(piece)
            reason = f"{feature} deviates by {deviation:.1e}, {self._tolerance:g} is allowed"
            self._groups.append(FallbackNodes(self._probe.block(piece), self._probe.pieces[piece], reason))
            yield self._probe.block(piece)

    def _first_error(self, added: set[int]) -> tuple[int, float, str] | None:
        """Piece, deviation and feature of the first error in execution order outside the pieces that were added."""
        errors = dict.fromkeys(self._probe.features, 0.0)
        rounded = self._probe.rounded(self._fp32_nodes, self._fp32_tensors)
        for outputs, features in zip(self._run(rounded), self._features, strict=True):
            for name in errors:
                errors[name] = max(errors[name], relative_difference(outputs[name], features[name]))
        for name, error in errors.items():
            piece = self._probe.piece_of_feature[name]
            if error > self._tolerance and piece not in added:
                return piece, error, name
        return None

    def evaluate(self, source: str) -> PrecisionRecord:
        """Run the whole schedule rounded, and return the record with all deviations."""
        compiled, nodes = self._bundle.compiled, self._fp32_nodes
        graphs = {
            name: self._probe.rounded_cut(graph, nodes, self._fp32_tensors) for name, graph in compiled.graphs.items()
        }
        session = self._open(CompiledProgram(compiled.program, graphs))
        image = session.run(*self._inputs, seed=self._options.seed, check_finite=False)
        free = relative_difference(image, self._reference.image)
        deviations = local_deviations(session, self._inputs, self._options.seed, self._reference)
        worst = max(deviations, key=lambda deviation: deviation.relative)
        if not (worst.relative <= self._tolerance and free <= _FREE_FACTOR * self._tolerance):
            raise GateError(
                f"{self._dtype} deviates by {worst.relative:.1e} at {worst.value}, step {worst.step}, and by "
                f"{free:.1e} in the image; {self._tolerance:g} and {_FREE_FACTOR * self._tolerance:g} are allowed: "
                "raise the tolerance, or take the other half precision"
            )
        return PrecisionRecord(
            dtype=self._dtype,
            source=source,
            tolerance=self._tolerance,
            images=self._options.images,
            always_fp32=tuple(sorted(self._probe.always_fp32)),
            fallback=tuple(_merge_groups(self._groups)),
            fp32_tensors=self._fp32_tensors,
            local=worst.relative,
            free=free,
        )

    def _open(self, compiled: CompiledProgram) -> Session:
        return open_session(self._bundle, self._options.images, guidance_scale=self._scale, compiled=compiled)

    def _run(self, graph: bytes) -> Iterator[Mapping[str, np.ndarray]]:
        """The outputs of a form of the master graph at every probed step."""
        session = onnxruntime_class()({MASTER_FILE: graph}, self._bundle.denoiser).session(MASTER_FILE)
        names = [output.name for output in session.get_outputs()]
        for feeds in self._feeds:
            yield dict(zip(names, session.run(names, feeds), strict=True))


def _merge_groups(groups: list[FallbackNodes]) -> Iterator[FallbackNodes]:
    """Each block once. Where range and error both name a block, the later group holds all nodes of the earlier."""
    last = {group.block: group for group in groups}
    for group in last.values():
        reasons = [other.reason for other in groups if other.block == group.block]
        yield replace(group, reason="; ".join(reasons))


def _network_inputs(session: Session, inputs: Inputs, seed: int, names: tuple[str, ...]) -> list[dict[str, np.ndarray]]:
    """The inputs of the whole network at each step whose graphs read all of them."""
    conditioning = inputs[1]
    rows = session.program.contract.sizes(session.batch)["rows"]
    steps: dict[int, dict[str, np.ndarray]] = {}
    for _, call in session.iterate(*inputs, seed=seed):
        if isinstance(call, Run):
            timestep = np.full(rows, call.timestep, np.float32)
            feeds = steps.setdefault(call.step, {TIMESTEP: timestep, **conditioning})
            feeds |= {name: session.slot(slot) for name, slot in call.inputs if name in names and name not in feeds}
    return [feeds for feeds in steps.values() if set(names) <= feeds.keys()]
