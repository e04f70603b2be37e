"""Trace: a denoiser as a master graph with all block features as outputs, one weights file and a BlockGraph.

1. A trace is a folder: ``master.onnx``, the weights, the denoiser's ``config.json``, and ``blocks.json``, written last.
2. The trace of a model on the device ``meta`` has only config and blocks, which is all that lowering needs.
3. Traces are cached by the digest of model, patterns, library versions and TRACE_VERSION, so that search and export
   share one trace.
4. A lock lets one process trace a model while others wait. A damaged trace is made again.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from dipgo_deploy.core.blocks import BLOCKS_FILE, BlockGraph
from dipgo_deploy.core.disk import cache_folder, check_target, staged
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.files import load_block_graph
from dipgo_deploy.core.tensors import ROWS
from dipgo_deploy.core.user_cache import mark_used
from dipgo_deploy.graphs.block_graph import BlockPatterns
from dipgo_deploy.graphs.cut import MASTER_FILE
from dipgo_deploy.graphs.master import write_trace
from dipgo_deploy.graphs.weights import WEIGHTS_FILE
from dipgo_deploy.models import LoadedModel, patterns_for
from dipgo_deploy.models.contracts import library_versions
from dipgo_deploy.supernet import match_blocks

__all__ = ["TRACE_VERSION", "Trace", "load_trace", "trace"]

TRACE_VERSION = 2
"""Version of a trace's content. It is part of the cache's key.

Raise it with every change that makes other traces of the same model. A test compares traces with recorded digests.
"""

_PARTS = (BLOCKS_FILE, MASTER_FILE, WEIGHTS_FILE)
"""Files that the trace of a model with weights must have, besides the config."""


@dataclass(frozen=True)
class Trace:
    """A trace on disk and its BlockGraph."""

    folder: Path
    blocks: BlockGraph

    @property
    def master(self) -> Path:
        """The ONNX graph with every feature as an output."""
        return self.folder / MASTER_FILE

    @property
    def weights(self) -> Path:
        """The safetensors file behind all graphs."""
        return self.folder / WEIGHTS_FILE


def trace(
    model: LoadedModel,
    *,
    granularity: str = "stage",
    patterns: Sequence[str] | None = None,
    out: Path | None = None,
    replace: bool = True,
) -> Trace:
    """Trace a model, or open its cached trace. The first trace of a model takes 10 to 30 s.

    Args:
        model: the denoiser.
        granularity: a block set of the model's preset, or patterns joined by commas.
        patterns: path patterns that choose the blocks, in place of a granularity. The granularity of the result is the
            patterns joined by commas.
        out: the folder of the trace. By default a folder of the cache.
        replace: whether a trace of another model, or with other blocks, at ``out`` is replaced.

    Returns:
        The trace.

    Raises:
        InputError: the model cannot be exported, or ``out`` holds something else than a trace.
        UsageError: an unknown granularity, or patterns that match nothing or nest.
    """
    chosen = _choose_patterns(model, granularity, patterns)
    key = _cache_key(model, chosen)
    folder = out or cache_folder() / "traces" / key
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / key):
        # Equal digests show equal behaviour only where no value hides its state.
        cached = _matching_trace(folder, model, chosen) if model.behaviour.is_certain else None
        if cached is not None:
            if out is None:
                mark_used(folder)
            return cached
        if out is not None and not replace:
            _check_own(folder, model, chosen)
        with _replaced(folder) as temporary:
            write_trace(model, chosen, temporary)
        return load_trace(folder, (BLOCKS_FILE,))


def load_trace(folder: Path, parts: Sequence[str] = _PARTS) -> Trace:
    """Open a trace.

    Args:
        folder: the folder of the trace.
        parts: names of the files that the folder must have.

    Returns:
        The trace.

    Raises:
        InputError: a part is missing, or ``blocks.json`` is damaged.
    """
    for name in parts:
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}: trace the model again")
    return Trace(folder, load_block_graph(folder / BLOCKS_FILE))


def _choose_patterns(model: LoadedModel, granularity: str, patterns: Sequence[str] | None) -> BlockPatterns:
    """The patterns of a granularity. Patterns of the user are their own granularity, so that a schedule keeps them."""
    if patterns is None and granularity not in model.preset.granularities:
        parts = granularity.split(",")
        if len(parts) > 1 or "." in granularity or match_blocks(model.module, parts, strict=False):
            patterns = parts
    if patterns is None:
        return BlockPatterns(granularity, patterns_for(model.class_name, model.preset, granularity), strict=False)
    return BlockPatterns(",".join(patterns), tuple(patterns), strict=True)


def _cache_key(model: LoadedModel, chosen: BlockPatterns) -> str:
    versions = library_versions()
    inputs = {name: entry.shape for name, entry in model.inputs.items()}
    sizes = {name: asdict(size) for name, size in sorted(model.sizes.items())}
    text = json.dumps([TRACE_VERSION, versions, model.digest, inputs, sizes, model.latent_shape, chosen.patterns])
    return f"{model.class_name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _matching_trace(folder: Path, model: LoadedModel, chosen: BlockPatterns) -> Trace | None:
    """The trace in ``folder``, if it is complete and fits the model, its input shapes and the patterns."""
    try:
        cached = load_trace(folder, _PARTS if model.has_weights else (BLOCKS_FILE,))
    except InputError:
        return None
    return cached if _is_of(cached.blocks, model, chosen) else None


def _is_of(blocks: BlockGraph, model: LoadedModel, chosen: BlockPatterns) -> bool:
    """Whether blocks are of a model, with its input shapes and free sizes, and of the chosen patterns."""
    usual = {ROWS: 1, **{name: size.opt for name, size in blocks.sizes.items()}}
    shapes = [(name, tuple(tensor.shape)) for name, tensor in model.example_inputs(1).items()]
    same_shapes = [(spec.name, spec.resolve(usual)) for spec in blocks.inputs] == shapes and _has_sizes(blocks, model)
    return same_shapes and (blocks.model_digest, blocks.patterns) == (model.digest, chosen.patterns)


def _check_own(folder: Path, model: LoadedModel, chosen: BlockPatterns) -> None:
    """Raise InputError if ``folder`` holds a sound trace, which must be of another model or of other blocks."""
    try:
        blocks = load_trace(folder, (BLOCKS_FILE,)).blocks
    except InputError:
        return
    if _is_of(blocks, model, chosen):
        return  # A part is missing, and is made again.
    raise InputError(
        f"{folder} holds a trace of {blocks.model_class} {blocks.model_digest[:12]} at granularity "
        f"{blocks.granularity}, made from other inputs than these: choose another folder, or pass replace=True"
    )


def _has_sizes(blocks: BlockGraph, model: LoadedModel) -> bool:
    """Whether a trace is free where the model asks for that, as far as the exporter could follow."""
    free = {name for name, size in blocks.sizes.items() if not size.is_fixed} | set(blocks.refused)
    asked = {name for name, size in model.sizes.items() if not size.is_fixed}
    within = all(
        model.sizes[name].min <= size.min and size.max <= model.sizes[name].max
        for name, size in blocks.sizes.items()
        if name in model.sizes
    )
    return blocks.sizes.keys() == model.sizes.keys() and free == asked and within


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A temporary folder that replaces ``folder`` at the end. Temporary folders of dead processes are removed first."""
    check_target(folder, folder=True)
    if folder.exists() and any(folder.iterdir()) and not any((folder / part).exists() for part in _PARTS):
        raise InputError(f"{folder} exists but is not a trace: choose another folder")
    for stale in folder.parent.glob(f".{folder.name}.trace.*"):
        shutil.rmtree(stale, ignore_errors=True)
    with staged(folder, "trace") as temporary:
        yield temporary
