"""Stand-ins for weights on the meta device: graphs of models that are larger than the memory.

What such a model exports to has initializers without numbers, at which the optimiser stops. A small one gets random
numbers, so that no two are united as equal; a large one a single number seen at every place of its shape, which takes
no memory. Every pass then does what it does on trained weights.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

__all__ = ["put_stand_ins"]

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
