"""Trace: a denoiser becomes a master graph with all block features as outputs, one weights file and a BlockGraph.

A trace is a folder: ``master.onnx``, the weights, the denoiser's ``config.json`` and ``blocks.json``, written last.
That of a model on the device ``meta`` has config and blocks alone: they tell all that lowering asks.
Traces are kept in a cache by the digest of model, patterns, library versions and TRACE_VERSION, so that search and
export never trace twice. A lock lets one process trace what several want; a damaged trace is made anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir
import onnx_ir.passes.common as passes  # noqa: TID251 - the home of onnx_ir
from filelock import FileLock
from torch._subclasses.fake_tensor import FakeTensorMode

from dipgo_deploy.core.blocks import PREDICTION, ZERO_MACS, Block, BlockGraph
from dipgo_deploy.core.disk import cache_folder, check_target, staged, write_atomic
from dipgo_deploy.core.errors import DipgoError, InputError, first_line
from dipgo_deploy.core.files import load_block_graph, save_block_graph
from dipgo_deploy.core.tensors import TensorSpec
from dipgo_deploy.graphs.capture import PARAMETER_PREFIX, Capture, capture
from dipgo_deploy.graphs.pieces import block_totals, build_pieces
from dipgo_deploy.graphs.shapes import infer_specs, make_shapes_constant
from dipgo_deploy.graphs.simplify import simplify
from dipgo_deploy.graphs.weights import INLINE_BYTES, WEIGHTS_FILE, externalize, save_weights
from dipgo_deploy.models import LoadedModel, patterns_for
from dipgo_deploy.models.contracts import library_versions
from dipgo_deploy.models.loading import canonical_config
from dipgo_deploy.supernet import execution_order, match_blocks

__all__ = ["BLOCKS_FILE", "MASTER_FILE", "TRACE_VERSION", "Trace", "load_trace", "trace"]

MASTER_FILE = "master.onnx"
"""Name of the master graph, in a trace and in the denoiser's folder of a bundle."""

BLOCKS_FILE = "blocks.json"
"""Name of the BlockGraph's document."""

TRACE_VERSION = 1
"""Version of what a trace holds for the same model. It is part of the cache's key.

Raise it with every change that makes other traces: a test compares traces with recorded digests.
"""

PARTS = (BLOCKS_FILE, MASTER_FILE, WEIGHTS_FILE)
"""What the trace of a model with weights must hold, besides the config."""


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
) -> Trace:
    """Trace ``model`` with the blocks of ``granularity``, or of your own ``patterns``, into ``out`` or the cache.

    The granularity of own patterns is the patterns themselves, joined by commas.

    Takes 10 to 30 s the first time and nothing after. Raises UsageError for patterns that match nothing or nest,
    InputError where the model cannot be exported or ``out`` holds something that is no trace.
    """
    label, chosen, strict = _chosen(model, granularity, patterns)
    key = _key(model, chosen)
    folder = out or cache_folder() / "traces" / key
    locks = cache_folder() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / key):
        found = _found(folder, model, chosen)
        if found is None:
            with _prepared(folder) as temporary:
                _write_trace(model, label, chosen, strict, temporary)
            found = load_trace(folder, (BLOCKS_FILE,))
    return found


def _found(folder: Path, model: LoadedModel, patterns: Sequence[str]) -> Trace | None:
    """The trace in ``folder``, if it is whole and one of this model, its inputs' shapes and these patterns."""
    try:
        found = load_trace(folder, PARTS if model.has_weights else (BLOCKS_FILE,))
    except InputError:
        return None
    shapes = [tuple(tensor.shape[1:]) for tensor in model.example_inputs(1).values()]
    same = [spec.shape[1:] for spec in found.blocks.inputs] == shapes
    return found if same and (found.blocks.model_digest, found.blocks.patterns) == (model.digest, patterns) else None


@contextmanager
def _prepared(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` in the end; what a dead process left goes first."""
    check_target(folder, folder=True)
    if folder.exists() and any(folder.iterdir()) and not any((folder / part).exists() for part in PARTS):
        raise InputError(f"{folder} exists and is no trace: choose another folder")
    for left in folder.parent.glob(f".{folder.name}.trace.*"):
        shutil.rmtree(left, ignore_errors=True)
    with staged(folder, "trace") as temporary:
        yield temporary


def load_trace(folder: Path, parts: Sequence[str] = PARTS) -> Trace:
    """Open a trace folder; InputError if one of ``parts`` is missing or the blocks are damaged."""
    for name in parts:
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}: trace the model again")
    return Trace(folder, load_block_graph(folder / BLOCKS_FILE))


def _chosen(model: LoadedModel, granularity: str, patterns: Sequence[str] | None) -> tuple[str, tuple[str, ...], bool]:
    """Label, patterns, and whether each must match. Own patterns are their own label, so that a schedule keeps them."""
    if patterns is None and granularity not in model.preset.granularities:
        given = granularity.split(",")
        if len(given) > 1 or "." in granularity or match_blocks(model.module, given, strict=False):
            patterns = given
    if patterns is None:
        return granularity, patterns_for(model.class_name, model.preset, granularity), False
    return ",".join(patterns), tuple(patterns), True


def _key(model: LoadedModel, patterns: Sequence[str]) -> str:
    text = json.dumps([TRACE_VERSION, library_versions(), model.digest, model.tokens, model.latent_shape, patterns])
    return f"{model.class_name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _write_trace(model: LoadedModel, label: str, patterns: Sequence[str], strict: bool, folder: Path) -> None:
    names = match_blocks(model.module, patterns, strict=strict)
    captured = capture(model, _order(model, names))
    graph = captured.model.graph
    state = model.module.state_dict()
    simplify(captured.model, captured.outputs, [PARAMETER_PREFIX + name for name in state])
    # From here on the graph refers to its weights: with them inside, a model of 2 GB cannot be serialized.
    external = _write_weights(model, graph, folder)
    make_shapes_constant(captured.model, infer_specs(captured.model))
    specs = infer_specs(captured.model)
    write_atomic(folder / "config.json", json.dumps(json.loads(_config(model)), indent=2) + "\n")
    blocks = _block_graph(model, label, patterns, captured, specs, external)
    if model.has_weights:
        _write_master(captured.model, specs, folder)
    save_block_graph(folder / BLOCKS_FILE, blocks)


def _order(model: LoadedModel, names: Sequence[str]) -> list[str]:
    """The blocks in execution order, found on shapes alone; InputError where the model does not take its latent's."""

    def forward() -> None:
        found = tuple(model.forward(**example).shape)
        if found[2:] != model.latent_shape[1:]:
            raise InputError(
                f"this {model.class_name} makes outputs of shape {found[1:]} from latents of shape "
                f"{model.latent_shape}, height and width are to stay: give another size"
            )

    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            example = model.example_inputs(2)
            return execution_order(model.module, names, forward)
    except DipgoError:
        raise
    except Exception as error:
        line = first_line(error)
        raise InputError(
            f"this {model.class_name} cannot run on latents of shape {model.latent_shape} ({line}): give another size"
        ) from error


def _write_master(master: ir.Model, specs: Mapping[str, TensorSpec], folder: Path) -> None:
    passes.ClearMetadataAndDocStringPass()(master)
    for value in (v for node in master.graph for v in node.outputs):
        value.shape = ir.Shape(specs[str(value.name)].shape)
    write_atomic(folder / MASTER_FILE, ir.to_proto(master).SerializeToString())


def _config(model: LoadedModel) -> str:
    entries = json.loads(canonical_config(model.config))
    return json.dumps({"_class_name": model.class_name, **entries})


def _write_weights(model: LoadedModel, graph: ir.Graph, folder: Path) -> dict[str, int]:
    """Write the weights file and make the graph refer to it; returns the bytes of every initializer in it."""
    state = model.module.state_dict()
    names, extras = {}, {}
    for initializer, value in graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None
        short = initializer.removeprefix(PARAMETER_PREFIX)
        if short in state and initializer.startswith(PARAMETER_PREFIX):
            names[initializer] = short
        elif tensor.nbytes >= INLINE_BYTES:
            names[initializer] = short
            extras[short] = tensor
    sizes = {initializer: graph.initializers[initializer].const_value.nbytes for initializer in names}  # type: ignore[union-attr]
    if model.has_weights:
        save_weights(folder / WEIGHTS_FILE, state, {name: tensor.numpy() for name, tensor in extras.items()})
        externalize(graph, folder / WEIGHTS_FILE, names)
    else:
        externalize(graph, folder / WEIGHTS_FILE, names, {names[name]: (0, size) for name, size in sizes.items()})
    return sizes


def _block_graph(
    model: LoadedModel,
    label: str,
    patterns: Sequence[str],
    captured: Capture,
    specs: dict[str, TensorSpec],
    external: dict[str, int],
) -> BlockGraph:
    graph = captured.model.graph
    pieces = build_pieces(graph, captured.outputs, specs)
    totals = block_totals(graph, list(captured.features), PARAMETER_PREFIX, specs)
    weights = external | {
        name: value.const_value.nbytes
        for name, value in graph.initializers.items()
        if name not in external and value.const_value is not None
    }
    blocks = [
        Block(name, features, captured.entries.get(name), totals[name][0], sum(weights[w] for w in totals[name][1]))
        for name, features in captured.features.items()
    ]
    used = {v for piece in pieces for v in (*piece.reads, *piece.gives)} | {str(v.name) for v in graph.inputs}
    return BlockGraph(
        model_class=model.class_name,
        model_digest=model.digest,
        granularity=label,
        patterns=tuple(patterns),
        dtype=model.dtype,
        inputs=tuple(specs[str(value.name)] for value in graph.inputs),
        blocks=(*blocks, Block(PREDICTION, (PREDICTION,), None, ZERO_MACS, 0)),
        pieces=pieces,
        values={name: spec for name, spec in specs.items() if name in used},
        weights=weights,
    )
