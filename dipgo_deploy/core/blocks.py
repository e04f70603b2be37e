"""BlockGraph: which parts of a denoiser can be skipped, what each part needs and what it costs.

The nodes of the traced graph fall into **pieces**: nodes from which the same feature tensors can be reached without
passing another feature tensor. Whether a node runs in a step depends only on that set, so a piece runs as a whole, and
the cost of any set of computed blocks is a sum over pieces, exact to the node, even without the graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from dipgo_deploy.core.contract import Contract
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.tensors import FREE_SIZES, SizeRange, TensorSpec, check_specs

__all__ = [
    "BLOCKS_FILE",
    "PREDICTION",
    "ZERO_MACS",
    "Block",
    "BlockGraph",
    "Kind",
    "Macs",
    "Piece",
    "check_block_graph",
    "check_known",
    "fit_contract",
]

BLOCKS_FILE = "blocks.json"
"""Name of the BlockGraph's document, in a trace and in a bundle."""

PREDICTION = "prediction"
"""The model's output, the last block of every model. A step that reuses it needs no network call."""

Kind = Literal["output", "residual"]
"""The feature that is reused: the output of a block, or its output minus its input (chain-shaped transformers)."""


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one row of the network's batch, in the two conventions of the field.

    Attributes:
        papers: linear layers, convolutions and LayerNorm (2 per element, 4 with a learned scale), without attention
            products. DiP-GO's tables count this way.
        full: every matrix product and convolution, attention included, without normalisation.
    """

    papers: int
    full: int

    def __add__(self, other: Macs) -> Macs:
        return Macs(self.papers + other.papers, self.full + other.full)


ZERO_MACS = Macs(0, 0)
"""Zero, the start value of sums."""


@dataclass(frozen=True)
class Block:
    """A submodule that can be skipped, or ``prediction``.

    Attributes:
        name: the dotted path of the submodule.
        features: its distinct output tensors, in the order its forward returns them.
        residual_input: the value that enters the block, if output and input have the same shape. Otherwise None.
        macs: multiply-accumulates of the nodes inside the block.
        weight_bytes: bytes of the weights inside the block.
    """

    name: str
    features: tuple[str, ...]
    residual_input: str | None
    macs: Macs
    weight_bytes: int


@dataclass(frozen=True)
class Piece:
    """Nodes that always run together.

    Attributes:
        index: the number of the piece, in topological order.
        reads: network inputs and values of other pieces that the nodes read.
        gives: feature tensors, and values that other pieces read.
        macs: multiply-accumulates of the nodes.
        weights: names of the weight tensors that the nodes read.
    """

    index: int
    reads: tuple[str, ...]
    gives: tuple[str, ...]
    macs: Macs
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class BlockGraph:
    """The blocks of one denoiser in execution order, its pieces in topological order and every value between them.

    Attributes:
        model_class, model_digest: the traced model and its weights.
        granularity, patterns: the name of the block set, and the path patterns that choose the blocks.
        dtype: type of the features.
        inputs: the network's inputs in call order, the latent first and the timestep second.
        blocks: all blocks in execution order. The last is the prediction.
        pieces: all pieces in topological order.
        values: shape and dtype of all inputs, features and values that cross between pieces.
        weights: bytes of every weight tensor.
        sizes: values that the graph takes for each free size. MACs are counted at the usual values.
        refused: free sizes that the exporter could not keep free, with the reason. They have one value in ``sizes``.
    """

    model_class: str
    model_digest: str
    granularity: str
    patterns: tuple[str, ...]
    dtype: str
    inputs: tuple[TensorSpec, ...]
    blocks: tuple[Block, ...]
    pieces: tuple[Piece, ...]
    values: Mapping[str, TensorSpec] = field(repr=False)
    weights: Mapping[str, int] = field(default_factory=dict, repr=False)
    sizes: Mapping[str, SizeRange] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"BlockGraph({self.model_class} {self.model_digest[:12]}, {self.dtype}, {len(self.blocks)} blocks at "
            f"{self.granularity}, {len(self.pieces)} pieces)"
        )

    @cached_property
    def block_names(self) -> tuple[str, ...]:
        """Names in execution order. The last is ``prediction``."""
        return tuple(block.name for block in self.blocks)

    @cached_property
    def block_of_name(self) -> dict[str, Block]:
        """Each block by its name."""
        return {block.name: block for block in self.blocks}

    @cached_property
    def block_of_feature(self) -> dict[str, str]:
        """The block that each feature tensor belongs to."""
        return {feature: block.name for block in self.blocks for feature in block.features}

    @cached_property
    def giver(self) -> dict[str, Piece]:
        """The piece that computes each value."""
        return {value: piece for piece in self.pieces for value in piece.gives}

    @cached_property
    def prediction(self) -> str:
        """Name of the network's output value."""
        return self.block_of_name[PREDICTION].features[0]

    @cached_property
    def macs(self) -> Macs:
        """One forward of the whole network, per row."""
        return self.cost(self.pieces)

    @cached_property
    def weight_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(self.weights.values())

    @cached_property
    def outside_macs(self) -> Macs:
        """MACs outside all blocks, which cannot be skipped while the network is called."""
        inside = sum((block.macs for block in self.blocks), ZERO_MACS)
        return Macs(self.macs.papers - inside.papers, self.macs.full - inside.full)

    def weight_bytes_of(self, pieces: Iterable[Piece]) -> int:
        """Bytes of the distinct weights of ``pieces``."""
        return sum(self.weights[name] for name in {name for piece in pieces for name in piece.weights})

    def cost(self, pieces: Iterable[Piece]) -> Macs:
        """Sum of MACs, per row."""
        return sum((piece.macs for piece in pieces), ZERO_MACS)


def fit_contract(contract: Contract, graph: BlockGraph) -> Contract:
    """The contract with the ranges of free sizes that the traced graph takes.

    Args:
        contract: what was asked for.
        graph: the traced model.

    Returns:
        The contract, with no range that is wider than the graph's.
    """
    tokens, height, width = (
        _narrow(contract.ranges.get(name), graph.sizes[name]) if name in graph.sizes else contract.ranges.get(name)
        for name in FREE_SIZES
    )
    return replace(contract, tokens=tokens, height=height, width=width)


def _narrow(wanted: SizeRange | None, traced: SizeRange) -> SizeRange:
    if wanted is None:
        return traced
    low, high = max(wanted.min, traced.min), min(wanted.max, traced.max)
    return traced if low > high else SizeRange(low, min(max(wanted.opt, low), high), high, traced.step)


def check_block_graph(graph: BlockGraph, source: str) -> None:
    """Check that every name in ``graph`` is described and that each piece reads only earlier values.

    A well-formed file may still name a tensor that it does not describe. Every loader calls this check, so later code
    can look up names without checks.

    1. The last block is the prediction. Values have known dtypes and usable shapes.
    2. Features, residual inputs, and the values that pieces read and give are described. So are the weights of pieces.
    3. Pieces are numbered in order and read network inputs or values of earlier pieces.

    Args:
        graph: the graph to check.
        source: the file name that begins each message.

    Raises:
        InputError: one of the three rules does not hold.
    """
    if not graph.blocks or graph.blocks[-1].name != PREDICTION or len(graph.blocks[-1].features) != 1:
        raise InputError(f"{source}: the last block must be '{PREDICTION}', with one feature: trace the model again")
    check_specs((*graph.inputs, *graph.values.values()), source)
    known = {spec.name for spec in graph.inputs}
    for index, piece in enumerate(graph.pieces):
        if piece.index != index:
            raise InputError(f"{source}: piece {index} is numbered {piece.index}: trace the model again")
        check_known(piece.weights, graph.weights, f"{source}: piece {index} has weight")
        check_known(piece.reads, known, f"{source}: piece {index} reads")
        check_known(piece.gives, graph.values, f"{source}: piece {index} gives")
        known.update(piece.gives)
    for block in graph.blocks:
        names = block.features if block.residual_input is None else (*block.features, block.residual_input)
        check_known(names, known, f"{source}: block {block.name} names")


def check_known(names: Iterable[str], known: Collection[str], start: str) -> None:
    """Raise InputError, with a message that begins with ``start``, for a name that is not among ``known``."""
    for name in names:
        if name not in known:
            raise InputError(f"{start} {name!r}, which the file does not describe: write the file again")
