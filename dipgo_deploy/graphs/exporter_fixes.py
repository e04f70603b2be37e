"""Fixes for defects of exported graphs. Each fix names the model that showed the defect.

1. A Squeeze of an axis longer than 1 is removed (`drop_void_squeezes`).
2. A known size that is read at run time becomes a constant (`fold_known_sizes`).
3. A Concat of float32 and half precision computes in float32 (`widen_mixed_concats`).
4. Weights on the meta device get placeholder numbers (`put_placeholders`). They belong to models that are traced
   without weights, and the optimiser stops at initializers without numbers.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

__all__ = ["apply_exporter_fixes", "drop_void_squeezes", "fold_known_sizes", "put_placeholders", "widen_mixed_concats"]


def apply_exporter_fixes(model: ir.Model) -> None:
    """Apply all fixes in place."""
    drop_void_squeezes(model.graph)
    fold_known_sizes(model.graph)
    widen_mixed_concats(model.graph)
    put_placeholders(model.graph)


def drop_void_squeezes(graph: ir.Graph) -> None:
    """Remove a Squeeze of an axis longer than 1.

    PyTorch ignores such a squeeze, ONNX forbids it. PixArt's blocks squeeze axis 1 of a sequence.
    """
    for node in [node for node in graph if node.op_type == "Squeeze" and len(node.inputs) == 2]:
        source, axes = node.inputs[0], ir.convenience.get_const_tensor(node.inputs[1])
        if source is None or source.shape is None or axes is None or axes.size != 1:
            continue
        size = source.shape[int(axes.numpy().item())]
        if isinstance(size, int) and size != 1:
            ir.convenience.replace_all_uses_with(node.outputs[0], source)
            graph.remove(node, safe=True)


def fold_known_sizes(graph: ir.Graph) -> None:
    """Replace a size that is read at run time by a constant, where that size is known although others are not.

    Wan's rotary embedding writes every second channel of a tensor and reads the tensor's last size at run time. Without
    this fix, the shapes of the written parts cannot be inferred.
    """
    for node in [node for node in graph if node.op_type == "Gather"]:
        source, index = node.inputs[0], node.inputs[1]
        shape_node = source.producer() if source is not None else None
        place = ir.convenience.get_const_tensor(index) if index is not None else None
        if shape_node is None or shape_node.op_type != "Shape" or place is None or place.size != 1:
            continue
        tensor = shape_node.inputs[0]
        if tensor is None or tensor.shape is None:
            continue
        start, end = shape_node.attributes.get_int("start", 0), shape_node.attributes.get_int("end", None)
        sizes = list(tensor.shape)[start:end]
        size = sizes[int(place.numpy().item())]
        if not isinstance(size, int):
            continue
        name = f"{node.outputs[0].name}_static"
        constant = ir.tensor(np.full(place.shape.numpy(), size, dtype=np.int64), name=name)
        value = ir.Value(name=name, shape=constant.shape, type=ir.TensorType(ir.DataType.INT64), const_value=constant)
        graph.register_initializer(value)
        ir.convenience.replace_all_uses_with(node.outputs[0], value)


def widen_mixed_concats(graph: ir.Graph) -> None:
    """Cast half-precision inputs of a Concat to float32, if another input is float32.

    PyTorch promotes them, ONNX forbids different types. SDXL in half precision joins its text embeddings with
    embeddings of sizes, which diffusers computes in float32.
    """
    for node in [node for node in graph if node.op_type == "Concat"]:
        if ir.DataType.FLOAT not in [value.dtype for value in node.inputs if value is not None]:
            continue
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
                continue
            name = f"{value.name}_{node.name}_float32"
            cast = ir.Node("", "Cast", [value], [ir.AttrInt64("to", ir.DataType.FLOAT.value)], name=name)
            cast.outputs[0].name, cast.outputs[0].shape = name, value.shape
            cast.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            graph.insert_before(node, cast)
            node.replace_input_with(index, cast.outputs[0])


_SMALL = 4096
"""Elements of an initializer that gets numbers of its own. The optimiser compares initializers of up to 1024."""


def put_placeholders(graph: ir.Graph) -> None:
    """Give each initializer on the meta device numbers, in place.

    A small initializer gets random numbers, so that the optimiser does not unite two of them. A large initializer gets
    one number, broadcast to its shape, which takes no memory.
    """
    generator = np.random.default_rng(0)
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and getattr(getattr(tensor, "raw", None), "is_meta", False):
            drawn = generator.uniform(0.1, 0.9, tensor.size if tensor.size <= _SMALL else 1)
            numbers = drawn.astype(tensor.dtype.numpy())
            shape = tensor.shape.numpy()
            numbers = numbers.reshape(shape) if len(numbers) == tensor.size else np.broadcast_to(numbers, shape)
            value.const_value = ir.tensor(numbers, dtype=tensor.dtype, name=name)
