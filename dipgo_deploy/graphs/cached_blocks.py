"""The blocks of a schedule's model from the cache of traces, for readers that have the schedule alone."""

from __future__ import annotations

from dipgo_deploy.core.blocks import BLOCKS_FILE, BlockGraph
from dipgo_deploy.core.disk import cache_folder
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import load_block_graph
from dipgo_deploy.core.schedule import Schedule

__all__ = ["cached_blocks"]


def cached_blocks(schedule: Schedule) -> BlockGraph | None:
    """Find the blocks that a schedule was made for.

    Args:
        schedule: the schedule. Its contract names the model.

    Returns:
        The blocks of a trace with the model's digest and the same blocks. None if the cache has no such trace.
    """
    contract = schedule.contract
    folders = (cache_folder() / "traces").glob(f"{contract.model_class}-*")
    # Traces of an older version of the program stay in the cache, so the newest comes first.
    for folder in sorted(folders, key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            graph = load_block_graph(folder / BLOCKS_FILE)
        except InputError:  # an interrupted or older trace
            continue
        if _fits(graph, schedule):
            return graph
    return None


def _fits(graph: BlockGraph, schedule: Schedule) -> bool:
    contract = schedule.contract
    # Channels may differ, because some networks read more channels than the latent has.
    sizes = zip(graph.inputs[0].shape[2:], contract.latent_shape[1:], strict=False)
    same_size = all(traced in (size, str(traced)) for traced, size in sizes)
    return same_size and graph.model_digest == contract.model_digest and set(graph.block_names) == set(schedule.blocks)
