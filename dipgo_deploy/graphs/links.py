"""Weights files that are links, as in the hub's cache, or that have several hard links.

ONNX Runtime and onnx refuse external data that a link leads out of the graph's folder. Bundles are checked against
their digests instead. Then the real file is named to ONNX Runtime, or read here.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx  # noqa: TID251 - the home of onnx
import onnx_ir as ir  # noqa: TID251 - the home of onnx_ir

__all__ = ["read_tensor", "resolve_weights"]


def resolve_weights(graph: bytes, folder: Path) -> tuple[bytes, Path]:
    """A graph that names the real file of its weights.

    Args:
        graph: a serialized graph whose tensors lie in at most one file of ``folder``.
        folder: the folder that the graph's weights are relative to.

    Returns:
        The graph, and the real folder of its weights. The graph is unchanged unless its weights file is a link.
    """
    home = Path(os.path.realpath(folder))
    if not any(path.is_symlink() for path in home.glob("*.safetensors")):
        return graph, home
    model = onnx.load_model_from_string(graph)
    constants = (a.t for node in model.graph.node for a in node.attribute if a.HasField("t"))
    places = [e for t in (*model.graph.initializer, *constants) for e in t.external_data if e.key == "location"]
    real = {Path(os.path.realpath(home / place.value)) for place in places}
    if len(real) != 1:
        return graph, home
    (file,) = real
    for place in places:
        place.value = file.name
    return model.SerializeToString(), file.parent


def read_tensor(tensor: ir.TensorProtocol) -> np.ndarray:
    """The values of a tensor of a graph. A tensor of a weights file is read wherever links of that file lead."""
    if not isinstance(tensor, ir.ExternalTensor):
        values: np.ndarray = tensor.numpy()
        return values
    shape = tensor.shape.numpy()
    return np.memmap(tensor.path, tensor.dtype.numpy(), "r", tensor.offset or 0, shape)
