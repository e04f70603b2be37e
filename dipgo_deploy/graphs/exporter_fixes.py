"""Defects of exported graphs, each mended under a name of its own, with the model that showed it.

Stand-ins for weights on the meta device: graphs of models that are larger than the memory.

What such a model exports to has initializers without numbers, at which the optimiser stops. A small one gets random
numbers, so that no two are united as equal; a large one a single number seen at every place of its shape, which takes
no memory. Every pass then does what it does on trained weights.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

__all__ = ["drop_void_squeezes", "fold_known_sizes", "mend", "put_stand_ins"]


def mend(model: ir.Model) -> None:
    """Mend all of them in place."""
    drop_void_squeezes(model.graph)
    fold_known_sizes(model.graph)


def drop_void_squeezes(graph: ir.Graph) -> None:
    """Take out a Squeeze of an axis longer than 1.

    To PyTorch that is no operation, to ONNX an error: PixArt's blocks squeeze axis 1 of a sequence.
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
    """Make a size that is asked of a tensor at run time a constant, where it is known although others are not.

    Wan's rotary embedding writes every other channel of a tensor, whose last size is asked that way; the shapes of what
    it writes could not be inferred.
    """
    for node in [node for node in graph if node.op_type == "Gather"]:
        source, index = node.inputs[0], node.inputs[1]
        asked = source.producer() if source is not None else None
        place = ir.convenience.get_const_tensor(index) if index is not None else None
        if asked is None or asked.op_type != "Shape" or place is None or place.size != 1:
            continue
        tensor = asked.inputs[0]
        if tensor is None or tensor.shape is None:
            continue
        sizes = list(tensor.shape)[asked.attributes.get_int("start", 0) : asked.attributes.get_int("end", None)]
        size = sizes[int(place.numpy().item())]
        if not isinstance(size, int):
            continue
        name = f"{node.outputs[0].name}_static"
        constant = ir.tensor(np.full(place.shape.numpy(), size, dtype=np.int64), name=name)
        value = ir.Value(name=name, shape=constant.shape, type=ir.TensorType(ir.DataType.INT64), const_value=constant)
        graph.register_initializer(value)
        ir.convenience.replace_all_uses_with(node.outputs[0], value)


_SMALL = 4096
"""Elements; the optimiser compares initializers of up to 1024."""


def put_stand_ins(graph: ir.Graph) -> None:
    """Give each initializer on the meta device numbers, in place."""
    generator = np.random.default_rng(0)
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and getattr(getattr(tensor, "raw", None), "is_meta", False):
            drawn = generator.uniform(0.1, 0.9, tensor.size if tensor.size <= _SMALL else 1)
            numbers = drawn.astype(tensor.dtype.numpy())
            shape = tensor.shape.numpy()
            numbers = numbers.reshape(shape) if len(numbers) == tensor.size else np.broadcast_to(numbers, shape)
            value.const_value = ir.tensor(numbers, dtype=tensor.dtype, name=name)
