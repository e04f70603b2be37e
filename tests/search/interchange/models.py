"""Block names of a U-Net and of a transformer, tiny models of both, and the images of a program."""

from __future__ import annotations

from collections.abc import Sequence

from dipgo_deploy.core.blocks import PREDICTION, ZERO_MACS, Block, BlockGraph
from dipgo_deploy.core.contract import Contract, SamplerSpec

LEVELS = 2
UNET = (
    *("down_blocks.0.resnets.0", "down_blocks.0.attentions.0", "down_blocks.0.resnets.1", "down_blocks.0.attentions.1"),
    "down_blocks.0.downsamplers.0",
    *("down_blocks.1.resnets.0", "down_blocks.1.resnets.1"),
    *("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    *("up_blocks.0.resnets.0", "up_blocks.0.resnets.1", "up_blocks.0.resnets.2", "up_blocks.0.upsamplers.0"),
    *("up_blocks.1.resnets.0", "up_blocks.1.attentions.0", "up_blocks.1.resnets.1", "up_blocks.1.attentions.1"),
    *("up_blocks.1.resnets.2", "up_blocks.1.attentions.2"),
)
"""Layers of a U-Net of two levels in execution order."""

BRANCHES = tuple(f"transformer_blocks.{i}.{branch}" for i in range(3) for branch in ("attn1", "ff"))
STAGES = tuple(f"transformer_blocks.{i}" for i in range(5))


def graph_of(names: Sequence[str], granularity: str, residuals: bool = False) -> BlockGraph:
    """A graph that knows no more than names; with ``residuals`` every block has one."""
    blocks = [Block(name, (f"{name}:0",), "hidden" if residuals else None, ZERO_MACS, 0) for name in names]
    last = Block(PREDICTION, (PREDICTION,), None, ZERO_MACS, 0)
    return BlockGraph("Model", "d" * 64, granularity, ("*",), "float32", (), (*blocks, last), (), {})


def contract_of(timesteps: int | Sequence[float]) -> Contract:
    """A contract with these timesteps, or so many of its own."""
    grid = range(1000, 0, -1)[:timesteps] if isinstance(timesteps, int) else timesteps
    sampler = SamplerSpec("DDIMScheduler", "{}", len(grid), tuple(float(t) for t in grid))
    return Contract("Model", "d" * 64, "float32", sampler, "none", (4, 8, 8))
