"""Random cases for lowering: block graphs with every feature a traced model has, schedules with forecasts, samplers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from hypothesis import strategies as st

from dipgo_deploy.core.blocks import PREDICTION, Block, BlockGraph, Macs, Piece
from dipgo_deploy.core.contract import Contract, Guidance, SamplerSpec
from dipgo_deploy.core.sampler import LinearSampler, OpaqueSampler, SamplerReading, Update
from dipgo_deploy.core.schedule import Schedule
from dipgo_deploy.core.tensors import TensorSpec
from tests.lowering.semantics import Values
from tests.search.graphs import chain_like, unet_like

BATCH = 2
LATENT = (2, 2, 2)


def small(graph: BlockGraph, channels: int = LATENT[0]) -> BlockGraph:
    """``graph`` with tensors of a few elements and a prediction of ``channels``."""

    def shrunk(spec: TensorSpec) -> TensorSpec:
        if spec.name == "timestep":
            return spec
        return replace(spec, shape=("rows", channels if spec.name == PREDICTION else LATENT[0], *LATENT[1:]))

    inputs = tuple(shrunk(spec) for spec in graph.inputs)
    return replace(graph, inputs=inputs, values={name: shrunk(spec) for name, spec in graph.values.items()})


def random_graph(seed: int, length: int) -> BlockGraph:
    """Blocks with one feature or two (the second made from the first), values inside a block that two pieces share,
    glue between blocks, skip connections, and residuals whose entry is a feature, glue or the latent itself.
    """
    rng = np.random.default_rng(seed)
    pieces = [_piece(0, ["timestep"], ["emb"]), _piece(1, ["context", "emb"], ["ctx"])]
    blocks: list[Block] = []
    hidden = ["sample"]

    def piece(reads: list[str], gives: list[str]) -> str:
        pieces.append(_piece(len(pieces), sorted({*reads}), gives))
        return gives[0]

    for i in range(length):
        name, entry = f"block.{i}", hidden[-1]
        if rng.random() < 0.4:
            entry = piece([entry, str(rng.choice(hidden))], [f"glue.{i}"])
        reads = [entry, str(rng.choice(["emb", "ctx"])), *(rng.choice(hidden, 1) if rng.random() < 0.5 else [])]
        reads = [str(read) for read in reads]
        if rng.random() < 0.4:
            reads = [piece(reads, [f"inner.{i}"]), entry]
        features = [piece(reads, [f"{name}:0"])]
        if rng.random() < 0.4:
            features.append(piece([features[0], *reads], [f"{name}:1"]))
        residual = entry if len(features) == 1 and rng.random() < 0.8 else None
        blocks.append(Block(name, tuple(features), residual, Macs(10, 10), 10))
        hidden += features
    piece([hidden[-1], str(rng.choice(hidden)), "emb"], [PREDICTION])
    return _graph(blocks, pieces)


def _piece(index: int, reads: list[str], gives: list[str]) -> Piece:
    return Piece(index, tuple(reads), tuple(gives), Macs(7 + index, 8 + index), (f"weight.{index}",))


def _graph(blocks: list[Block], pieces: list[Piece]) -> BlockGraph:
    names = ["sample", "context", *(value for piece in pieces for value in piece.gives)]
    values = {name: TensorSpec(name, ("rows", *LATENT), "float32") for name in names}
    values["timestep"] = TensorSpec("timestep", ("rows",), "float32")
    last = Block(PREDICTION, (PREDICTION,), None, Macs(0, 0), 0)
    inputs = tuple(values[name] for name in ("sample", "timestep", "context"))
    weights = {f"weight.{piece.index}": 4 for piece in pieces}
    return BlockGraph(
        "Toy", "d" * 64, "stage", ("*",), "float32", inputs, (*blocks, last), tuple(pieces), values, weights
    )


def random_forecasts(schedule: Schedule, rng: np.random.Generator, share: float) -> Schedule:
    """Give a share of the reused entries two or three coefficients, or one that is not 1, where history allows."""
    forecasts = {}
    for step in range(schedule.steps):
        for block in set(schedule.blocks) - schedule.computed[step]:
            count = int(rng.integers(1, 4))
            if rng.random() < share and len(schedule.earlier(step, block)) >= count:
                forecasts[step, block] = tuple(float(c) for c in rng.uniform(-1, 1, count))
    return replace(schedule, forecasts=forecasts)


def made_up_sampler(steps: int, memory: tuple[int, int], rng: np.random.Generator) -> LinearSampler:
    """A linear sampler that looks back over ``memory`` latents and outputs; some older coefficients are zero."""

    def coefficients(count: int) -> tuple[float, ...]:
        older = rng.uniform(-0.8, 0.8, count - 1) * (rng.random(count - 1) < 0.7)
        return tuple(float(c) for c in (rng.uniform(0.2, 0.8), *older))

    updates = [Update(*(coefficients(min(m, i + 1)) for m in memory)) for i in range(steps)]
    scales = tuple(float(s) for s in rng.choice([1.0, 0.5, 1.3], steps))
    # Inputs of their own read one output less than the step after them, down to the first noise.
    own = [Update(coefficients(i + 1), coefficients(i)[:i] if i else ()) for i in range(steps)]
    inputs = tuple(own) if memory[0] == 3 else ()
    return LinearSampler(float(rng.choice([1.0, 1.7])), scales, tuple(updates), inputs)


@dataclass(frozen=True)
class Case:
    """A schedule for a graph, a sampler, noise and conditioning."""

    graph: BlockGraph
    schedule: Schedule
    sampler: SamplerReading
    noise: np.ndarray
    conditioning: Values


def contract(graph: BlockGraph, steps: int, guidance: Guidance) -> Contract:
    sampler = SamplerSpec("Toy", "{}", steps, tuple(float(100 - 3 * i) for i in range(steps)))
    return Contract(graph.model_class, graph.model_digest, graph.dtype, sampler, guidance, LATENT)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Random schedules compute each entry with one probability; step 0 computes everything that is ever read."""
    which = draw(st.sampled_from(["unet", "chain", "random", "random"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    length = draw(st.integers(1, 5))
    channels = draw(st.sampled_from([LATENT[0], 2 * LATENT[0]]))
    made = {"unet": unet_like, "chain": chain_like}.get(which, lambda n: random_graph(int(rng.integers(10**6)), n))
    graph = small(made(length), channels)
    steps = draw(st.integers(1, 7))
    rows = rng.random((steps, len(graph.blocks))) < draw(st.floats(0, 1))
    rows[0] = True
    kind = draw(st.sampled_from(["output", "residual"]))
    guidance = draw(st.sampled_from(["none", "concat"]))
    compute = tuple(map(tuple, rows.tolist()))
    schedule = Schedule(contract(graph, steps, guidance), "stage", kind, graph.block_names, compute)
    schedule = random_forecasts(schedule, rng, draw(st.sampled_from([0.0, 0.5])))
    memory = draw(st.sampled_from([(1, 1), (2, 2), (2, 4), (3, 3), None]))
    sampler: SamplerReading = made_up_sampler(steps, memory or (1, 1), rng)
    if memory is None:
        sampler = OpaqueSampler(sampler.initial_scale, sampler.input_scales, "made up")
    count = BATCH * schedule.contract.rows_per_image
    sizes = [(s.name, (count, *s.shape[1:])) for s in graph.inputs[1:] if s.name != "timestep"]
    return Case(
        graph,
        schedule,
        sampler,
        rng.standard_normal((BATCH, *LATENT)),
        {name: rng.standard_normal(shape) for name, shape in sizes},
    )
