"""Two small block graphs made by hand, a U-Net with skip connections and a chain of residual blocks, and a contract."""

from __future__ import annotations

from dipgo_deploy.core.blocks import PREDICTION, Block, BlockGraph, Kind, Macs, Piece
from dipgo_deploy.core.contract import Contract, Guidance, SamplerSpec
from dipgo_deploy.core.liveness import is_residual, residual_name
from dipgo_deploy.core.tensors import TensorSpec

_INPUTS = (TensorSpec("sample", ("rows", 4, 8, 8), "float32"), TensorSpec("timestep", ("rows",), "float32"))


def contract_of(graph: BlockGraph, steps: int, guidance: Guidance = "none") -> Contract:
    """A DDIM contract of ``steps`` network calls for ``graph``."""
    timesteps = tuple(float(1000 - 1000 * i // steps) for i in range(steps))
    sampler = SamplerSpec("DDIMScheduler", "{}", steps, timesteps)
    return Contract(graph.model_class, graph.model_digest, graph.dtype, sampler, guidance, (4, 8, 8))


def unet_like(levels: int = 4) -> BlockGraph:
    """Down, mid and up blocks; up block i reads the skip feature of down block i; stem and tail cost 2 % together.

    MACs of a block fall by half per level, so the outermost blocks weigh most.
    """
    stem, emb = _piece(0, ("sample",), ("stem",), 16), _piece(1, ("timestep",), ("emb",), 1)
    pieces, hidden = [stem, emb], "stem"
    blocks: list[Block] = []
    for i in range(levels):
        name, macs = f"down_blocks.{i}", 800 >> i
        _add(blocks, pieces, name, (hidden, "emb"), (f"{name}:0", f"{name}:1"), macs)
        hidden = f"{name}:0"
    _add(blocks, pieces, "mid_block", (hidden, "emb"), ("mid_block:0",), 50)
    hidden = "mid_block:0"
    for i in range(levels):
        name, level = f"up_blocks.{i}", levels - 1 - i
        _add(blocks, pieces, name, (hidden, f"down_blocks.{level}:1", "emb"), (f"{name}:0",), 1600 >> level)
        hidden = f"{name}:0"
    return _graph("UNet2DConditionModel", blocks, pieces, (hidden,), 50)


def chain_like(length: int = 6) -> BlockGraph:
    """A stem, ``length`` equal blocks in a row, each with a residual, and a tail modulated by the timestep."""
    pieces = [_piece(0, ("sample",), ("stem",), 20), _piece(1, ("timestep",), ("emb",), 5)]
    blocks: list[Block] = []
    hidden = "stem"
    for i in range(length):
        name = f"transformer_blocks.{i}"
        _add(blocks, pieces, name, (hidden, "emb"), (f"{name}:0",), 600, residual_input=hidden)
        hidden = f"{name}:0"
    return _graph("DiTTransformer2DModel", blocks, pieces, (hidden, "emb"), 75)


def _add(
    blocks: list[Block],
    pieces: list[Piece],
    name: str,
    reads: tuple[str, ...],
    gives: tuple[str, ...],
    macs: int,
    residual_input: str | None = None,
) -> None:
    pieces.append(_piece(len(pieces), reads, gives, macs))
    blocks.append(Block(name, gives, residual_input, Macs(macs, macs + macs // 10), 4 * macs))


def _piece(index: int, reads: tuple[str, ...], gives: tuple[str, ...], macs: int) -> Piece:
    return Piece(index, reads, gives, Macs(macs, macs + macs // 10), (f"weight.{index}",))


def _graph(
    model_class: str, blocks: list[Block], pieces: list[Piece], tail_reads: tuple[str, ...], tail_macs: int
) -> BlockGraph:
    pieces = [*pieces, _piece(len(pieces), tail_reads, (PREDICTION,), tail_macs)]
    prediction = Block(PREDICTION, (PREDICTION,), None, Macs(0, 0), 0)
    names = [*(value for piece in pieces for value in piece.gives)]
    values = {spec.name: spec for spec in _INPUTS}
    values |= {name: TensorSpec(name, ("rows", 4, 8, 8), "float32") for name in names}
    weights = {f"weight.{piece.index}": 4 * piece.macs.papers for piece in pieces}
    return BlockGraph(
        model_class,
        "d" * 64,
        "stage",
        ("*_blocks.*",),
        "float32",
        _INPUTS,
        (*blocks, prediction),
        tuple(pieces),
        values,
        weights,
    )


def stored_names(graph: BlockGraph, block: str, kind: Kind) -> tuple[str, ...]:
    """The names under which a block's computed result is kept for later steps."""
    return (residual_name(block),) if is_residual(graph, block, kind) else graph.block_of_name[block].features
