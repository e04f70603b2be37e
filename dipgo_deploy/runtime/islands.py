"""The island search: which nodes of a bundle must stay in float32, found on real trajectories.

1. The bundle's float32 trajectory is recorded, and the network's inputs at some of its steps.
2. Ranges: what half precision cannot hold (a safety factor of 2 included) stays in float32, with its maker and readers.
3. Errors: with everything rounded to half precision (graphs/rounding.py), the first piece in execution order whose
   values leave the tolerance becomes an island; again, until none does.
4. The whole schedule runs rounded: every graph fed the float32 slots, and the trajectory on its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from dipgo_deploy.core.errors import GateError, UsageError
from dipgo_deploy.core.precision import HalfType, Island, PrecisionRecord
from dipgo_deploy.core.program import TIMESTEP, Run
from dipgo_deploy.graphs.half_probe import HalfProbe
from dipgo_deploy.graphs.rounding import RANGE_SUFFIX
from dipgo_deploy.graphs.trace import MASTER_FILE
from dipgo_deploy.runtime.deviation import local_deviations, recorded, relative_difference
from dipgo_deploy.runtime.inputs import Inputs, run_inputs
from dipgo_deploy.runtime.interpreter import Session
from dipgo_deploy.runtime.loaded import Compiled, LoadedBundle

__all__ = ["LARGEST", "TOLERANCE", "IslandOptions", "find_islands"]

LARGEST = {"float16": 65504.0, "bfloat16": 3.3895e38}
"""The largest finite number of each half precision."""

TOLERANCE = {"float16": 2e-2, "bfloat16": 5e-2}
"""Local deviation allowed, relative to the largest value of a slot; ten times as much free-running."""

Feeds = dict[str, np.ndarray]
_FREE = 10.0
_MARGIN = 2.0


@dataclass(frozen=True)
class IslandOptions:
    """Images and their first seed; steps whose inputs are probed; tolerance, None for that of the half precision."""

    images: int = 2
    seed: int = 2000
    steps: int = 6
    tolerance: float | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        if min(self.images, self.steps) < 1:
            raise UsageError(f"{self.images} images at {self.steps} steps show nothing: ask for 1 or more of both")
        if self.tolerance is not None and not 0 < self.tolerance < 1:
            raise UsageError(f"tolerance {self.tolerance} is no number between 0 and 1: give one, or leave it out")


def find_islands(
    bundle: LoadedBundle, dtype: HalfType, source: str, options: IslandOptions = IslandOptions()
) -> Iterator[tuple[str, PrecisionRecord | None]]:
    """Search; yields what is being done, and with the last the record. ``source`` is the digest of what was searched.

    Raises GateError where half precision cannot be made to hold the tolerance, or something is not finite in float32.
    """
    search = _Search(bundle, dtype, options)
    yield "recording the trajectory in float32", None
    search.record()
    yield "measuring ranges", None
    search.by_range()
    for block in search.by_error():
        yield f"{block} stays in float32", None
    yield "running the schedule in half precision", None
    yield "done", search.judged(source)


class _Search:
    def __init__(self, bundle: LoadedBundle, dtype: HalfType, options: IslandOptions) -> None:
        self._bundle, self._dtype, self._options = bundle, dtype, options
        contract = bundle.manifest.contract
        self._tolerance = options.tolerance or TOLERANCE[dtype]
        self._scale = contract.guidance_scale(None)
        self._probe = HalfProbe(bundle.denoiser / MASTER_FILE, bundle.blocks, dtype)
        self._inputs = run_inputs(bundle.model, contract, range(options.seed, options.seed + options.images))
        self._islands: list[Island] = []
        self._wide: tuple[str, ...] = ()

    @property
    def _wide_nodes(self) -> set[str]:
        return {*self._probe.fixed, *chain.from_iterable(island.nodes for island in self._islands)}

    def record(self) -> None:
        """The float32 trajectory, and inputs of the whole network at steps spread over it."""
        session = self._session(self._bundle.compiled)
        self._wanted = recorded(session, self._inputs, self._options.seed)
        if not np.isfinite(self._wanted.image).all():
            raise GateError("the float32 trajectory is not finite: verify the bundle before building engines of it")
        feeds = _network_inputs(session, self._inputs, self._options.seed, self._probe.inputs)
        if not feeds:
            raise GateError("no step of this schedule runs the whole network: export a schedule whose first step does")
        places = np.linspace(0, len(feeds) - 1, min(self._options.steps, len(feeds)))
        self._feeds = [feeds[round(place)] for place in places]

    def by_range(self) -> None:
        """Islands around what half precision cannot hold; keeps the float32 features for `by_error`."""
        names = (*self._probe.features,)
        ranges: dict[str, float] = dict(self._probe.weights_beyond(LARGEST[self._dtype] / _MARGIN))
        self._references = []
        for outputs in self._run(self._probe.measured()):
            self._references.append({name: outputs[name] for name in names})
            for name, value in outputs.items():
                if name.endswith(RANGE_SUFFIX):
                    value_name = name.removesuffix(RANGE_SUFFIX)
                    ranges[value_name] = max(float(value), ranges.get(value_name, 0.0))
        limit = LARGEST[self._dtype] / _MARGIN
        beyond = {name: size for name, size in ranges.items() if size > limit or not np.isfinite(size)}
        if odd := [name for name, size in beyond.items() if not np.isfinite(size)]:
            raise GateError(
                f"{odd[0]} is not finite in float32 either: verify the bundle before building engines of it"
            )
        self._wide = tuple(name for name in self._bundle.blocks.values if name in beyond)
        for piece, nodes in self._probe.around(beyond).items():
            worst = max((size, name) for name, size in beyond.items() if piece in self._probe.around([name]))
            reason = f"{worst[1]} reaches {worst[0]:.3g}, {self._dtype} holds {LARGEST[self._dtype]:.6g}"
            self._islands.append(Island(self._probe.block(piece), nodes, reason))

    def by_error(self) -> Iterator[str]:
        """Islands of whole pieces, first to last, until every feature holds the tolerance; yields their blocks."""
        whole: set[int] = set()
        while (found := self._first_error(whole)) is not None:
            piece, error, feature = found
            whole.add(piece)
            reason = f"{feature} deviates by {error:.1e}, {self._tolerance:g} is allowed"
            self._islands.append(Island(self._probe.block(piece), self._probe.pieces[piece], reason))
            yield self._probe.block(piece)

    def _first_error(self, whole: set[int]) -> tuple[int, float, str] | None:
        errors = dict.fromkeys(self._probe.features, 0.0)
        for outputs, wanted in zip(
            self._run(self._probe.rounded(self._wide_nodes, self._wide)), self._references, strict=True
        ):
            for name in errors:
                errors[name] = max(errors[name], relative_difference(outputs[name], wanted[name]))
        for name, error in errors.items():
            piece = self._probe.piece_of_feature[name]
            if error > self._tolerance and piece not in whole:
                return piece, error, name
        return None

    def judged(self, source: str) -> PrecisionRecord:
        """The record, after the whole schedule has run rounded."""
        compiled = self._bundle.compiled
        nodes = self._wide_nodes
        graphs = {n: self._probe.rounded_cut(g, nodes, self._wide) for n, g in compiled.graphs.items()}
        session = self._session(Compiled(compiled.program, graphs))
        free = relative_difference(session.run(*self._inputs, seed=self._options.seed), self._wanted.image)
        deviations = local_deviations(session, self._inputs, self._options.seed, self._wanted)
        worst = max(deviations, key=lambda deviation: deviation.relative)
        if not (worst.relative <= self._tolerance and free <= _FREE * self._tolerance):
            raise GateError(
                f"{self._dtype} deviates by {worst.relative:.1e} at {worst.value}, step {worst.step}, and by "
                f"{free:.1e} in the image; {self._tolerance:g} and {_FREE * self._tolerance:g} are allowed: raise "
                "--tolerance, or export in float32 and take the other half precision"
            )
        return PrecisionRecord(
            dtype=self._dtype,
            source=source,
            tolerance=self._tolerance,
            images=self._options.images,
            fixed=tuple(sorted(self._probe.fixed)),
            islands=tuple(_merged(self._islands)),
            wide=self._wide,
            local=worst.relative,
            free=free,
        )

    def _session(self, compiled: Compiled) -> Session:
        return self._bundle.session(self._options.images, guidance_scale=self._scale, compiled=compiled)

    def _run(self, graph: bytes) -> Iterator[Mapping[str, np.ndarray]]:
        """The outputs of a form of the master graph at every probed step."""
        from dipgo_deploy.runtime.onnxruntime_backend import OnnxRuntimeBackend

        session = OnnxRuntimeBackend({MASTER_FILE: graph}, self._bundle.denoiser).session(MASTER_FILE)
        names = [output.name for output in session.get_outputs()]
        for feeds in self._feeds:
            yield dict(zip(names, session.run(names, feeds), strict=True))


def _merged(islands: list[Island]) -> Iterator[Island]:
    """A block that ranges and errors have both named stands once, with the later, larger set of nodes."""
    last = {island.block: island for island in islands}
    for island in last.values():
        reasons = [other.reason for other in islands if other.block == island.block]
        yield replace(island, reason="; ".join(reasons))


def _network_inputs(session: Session, inputs: Inputs, seed: int, names: tuple[str, ...]) -> list[Feeds]:
    """What the whole network is fed at each step whose graphs read all of its inputs."""
    given = inputs[1]
    rows = session.program.contract.sizes(session.batch)["rows"]
    steps: dict[int, Feeds] = {}
    for _, call in session.iterate(*inputs, seed=seed):
        if isinstance(call, Run):
            feeds = steps.setdefault(call.step, {TIMESTEP: np.full(rows, call.timestep, np.float32), **given})
            feeds |= {name: session.slot(slot) for name, slot in call.inputs if name in names and name not in feeds}
    return [feeds for feeds in steps.values() if set(names) <= feeds.keys()]
