"""Write the files of a trace: capture, simplify, weights, shapes, and the BlockGraph.

1. The blocks are ordered by running the model on fake tensors, which takes no memory.
2. The model is exported once, with every feature as an output, and simplified. If a size cannot be free, the model is
   exported again with that size fixed, and the BlockGraph records the reason.
3. Weights go into their file before shapes are inferred. A model of 2 GB cannot be serialized with weights inside.
4. ``blocks.json`` is written last, so that an incomplete trace is recognized.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir
import onnx_ir.passes.common as passes  # noqa: TID251 - the home of onnx_ir
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dipgo_deploy.core.blocks import BLOCKS_FILE
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.errors import DipgoError, InputError, first_line
from dipgo_deploy.core.files import save_block_graph
from dipgo_deploy.core.tensors import HEIGHT, WIDTH, SizeRange, TensorSpec
from dipgo_deploy.graphs.block_graph import BlockPatterns, build_block_graph
from dipgo_deploy.graphs.capture import EXAMPLE_ROWS, PARAMETER_PREFIX, Capture, capture
from dipgo_deploy.graphs.constant_shapes import make_shapes_constant
from dipgo_deploy.graphs.cut import MASTER_FILE
from dipgo_deploy.graphs.shapes import infer_specs
from dipgo_deploy.graphs.simplify import simplify
from dipgo_deploy.graphs.weights import INLINE_BYTES, WEIGHTS_FILE, externalize, save_weights
from dipgo_deploy.models import LoadedModel
from dipgo_deploy.models.weights_digest import canonical_config
from dipgo_deploy.supernet import execution_order, match_blocks

__all__ = ["write_trace"]


def write_trace(model: LoadedModel, chosen: BlockPatterns, folder: Path) -> None:
    """Trace a model into an empty folder.

    Args:
        model: the denoiser.
        chosen: the blocks.
        folder: an existing folder.

    Raises:
        InputError: the model cannot be exported, does not take latents of its size, or gives two results for the same
            inputs.
        UsageError: patterns that match nothing or nest.
    """
    names = match_blocks(model.module, chosen.patterns, strict=chosen.strict)
    if model.has_weights and model.behaviour:
        _check_repeatable(model)
    order = _execution_order(model, names)
    sizes, refused = dict(model.sizes), {}
    try:
        captured, external = _captured(model, order, sizes, folder)
    except InputError as error:
        if all(size.is_fixed for size in sizes.values()):
            raise
        # The exporter seldom says which size it cannot keep free, so all are fixed.
        refused = {name: str(error) for name, size in sizes.items() if not size.is_fixed}
        _check_sides(model, refused, str(error))
        sizes = {name: replace(size, min=size.opt, max=size.opt) for name, size in sizes.items()}
        captured, external = _captured(model, order, sizes, folder)
    _check_taken(model, captured.sizes)
    specs = infer_specs(captured.model, captured.sizes)
    _write_config(model, folder)
    # Before the master graph is written, for writing removes the module scopes that assign nodes to blocks.
    blocks = replace(build_block_graph(model, chosen, captured, specs, external), refused=refused)
    if model.has_weights:
        _write_master(captured.model, specs, folder)
    save_block_graph(folder / BLOCKS_FILE, blocks)


def _check_sides(model: LoadedModel, refused: Collection[str], reason: str) -> None:
    """Raise InputError for a free height or width. Nobody gets one size who asked for many."""
    if sides := [name for name in (HEIGHT, WIDTH) if name in refused]:
        raise InputError(
            f"{' and '.join(sides)} of this {model.class_name} cannot be free ({reason}): choose one size, and make a "
            "bundle for each size"
        )


def _check_taken(model: LoadedModel, taken: Mapping[str, SizeRange]) -> None:
    """Raise InputError where the exporter takes fewer heights or widths than were asked for."""
    for name in (HEIGHT, WIDTH):
        if name in taken and (taken[name].min, taken[name].max) != (model.sizes[name].min, model.sizes[name].max):
            raise InputError(
                f"this {model.class_name} takes {name} {taken[name]} only, not {model.sizes[name]}: choose a smaller "
                "range of sizes"
            )


def _captured(
    model: LoadedModel, blocks: Sequence[str], sizes: Mapping[str, SizeRange], folder: Path
) -> tuple[Capture, dict[str, int]]:
    """The simplified export with constant shapes, and the bytes of each initializer in the weights file."""
    captured = capture(model, blocks, sizes)
    state = model.module.state_dict()
    try:
        simplify(captured.model, captured.outputs, [PARAMETER_PREFIX + name for name in state])
        external = _write_weights(model, captured.model.graph, folder)
        make_shapes_constant(captured.model, infer_specs(captured.model, captured.sizes))
    except (DipgoError, OSError, MemoryError):
        raise
    except Exception as error:  # Such as a shape that depends on a loop over the rows, in sliced attention.
        raise InputError(
            f"the graph that was exported from this {model.class_name} is inconsistent ({first_line(error)}): remove "
            "what the module was changed with, such as attention slicing"
        ) from error
    return captured, external


@torch.no_grad()
def _check_repeatable(model: LoadedModel) -> None:
    """Raise InputError for a model that answers the same call twice in different ways. Hooks may do that."""
    inputs = model.example_inputs(EXAMPLE_ROWS)
    first, second = (model.forward(**inputs).clone() for _ in range(2))
    if not torch.allclose(first, second, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise InputError(
            f"this {model.class_name} gives two results for the same inputs ({model.behaviour.summary}), so it draws "
            "random numbers or keeps values between calls: remove what it was patched with, a graph cannot do that"
        )


def _execution_order(model: LoadedModel, names: Sequence[str]) -> list[str]:
    """The blocks in execution order. Raises InputError unless the output fits the latent."""

    def forward() -> None:
        _check_output(model, tuple(model.forward(**example).shape))

    _check_arguments(model)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            example = model.example_inputs(EXAMPLE_ROWS)
            return execution_order(model.module, names, forward)
    except DipgoError:
        raise
    except Exception as error:
        line = first_line(error)
        raise InputError(
            f"this {model.class_name} cannot run on latents of shape {model.latent_shape} with inputs "
            f"{', '.join(model.inputs) or 'none'} ({line}): choose another size, or pass a Preset with its inputs"
        ) from error


def _check_output(model: LoadedModel, shape: tuple[int, ...]) -> None:
    latent = model.latent_shape
    if shape[2:] != latent[1:]:
        raise InputError(
            f"this {model.class_name} makes outputs of shape {shape[1:]} from latents of shape {latent}, but height "
            "and width must stay the same: choose another size"
        )
    if shape[1] not in (latent[0], 2 * latent[0]):
        raise InputError(
            f"this {model.class_name} makes {shape[1]} output channels from latents of {latent[0]}, but a sampler "
            f"takes {latent[0]}, or {2 * latent[0]} with a learned variance: set latent_shape to the sampler's latent"
        )


def _check_arguments(model: LoadedModel) -> None:
    """Raise InputError if a built-in preset leaves a required argument of the network's forward without an input."""
    if model.preset.example is not None:
        return
    parameters = inspect.signature(model.module.forward).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    known = {*model.example_inputs(1), "encoder_hidden_states"}
    if missing := [name for name in required if name not in known]:
        raise InputError(
            f"the forward of this {model.class_name} needs {missing[0]}, for which its preset has no input: pass a "
            "Preset with that input"
        )


def _write_config(model: LoadedModel, folder: Path) -> None:
    entries = {"_class_name": model.class_name, **json.loads(canonical_config(model.config))}
    write_atomic(folder / "config.json", json.dumps(entries, indent=2) + "\n")


def _write_master(master: ir.Model, specs: Mapping[str, TensorSpec], folder: Path) -> None:
    passes.ClearMetadataAndDocStringPass()(master)
    for value in (v for node in master.graph for v in node.outputs):
        value.shape = ir.Shape(specs[str(value.name)].shape)
    write_atomic(folder / MASTER_FILE, ir.to_proto(master).SerializeToString())


def _write_weights(model: LoadedModel, graph: ir.Graph, folder: Path) -> dict[str, int]:
    """Write the weights file and make the graph refer to it. Returns the bytes of each initializer in the file."""
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
