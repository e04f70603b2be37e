"""Small graphs written as ONNX text, and graphs run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort


def model_from_text(text: str, **weights: np.ndarray) -> ir.Model:
    """An opset 20 model from the text of its graph; ``weights`` become initializers of their own name."""
    proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 20]>\n{text}')
    model = ir.from_proto(proto)
    for name, array in weights.items():
        tensor = ir.tensor(array, name=name)
        kind = ir.TensorType(tensor.dtype)
        value = ir.Value(name=name, shape=tensor.shape, type=kind, const_value=tensor)
        for node in model.graph:
            for position, old in enumerate(node.inputs):
                if old is not None and old.name == name:
                    node.replace_input_with(position, value)
        model.graph.register_initializer(value)
    model.graph.inputs[:] = [value for value in model.graph.inputs if value.name not in weights]
    return model


def open_session(content: bytes, folder: Path) -> ort.InferenceSession:
    """A session of one thread for graph bytes whose external data lies in ``folder``."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run_session(session: ort.InferenceSession, given: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All outputs by name; the session's inputs are taken from ``given`` by name."""
    names = [output.name for output in session.get_outputs()]
    feed = {entry.name: given[entry.name] for entry in session.get_inputs()}
    return dict(zip(names, session.run(names, feed), strict=True))


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


# Heads split by a Reshape to a computed shape, as an exporter writes it.
HEADS = """
agraph (float[rows, 4, 6] x) => (float[n, h, s, d] y)
<int64[1] minus = {-1}, int64[1] two = {2}, int64[1] three = {3}>
{
    rows_of_x = Shape<start = 0, end = 1>(x)
    target = Concat<axis = 0>(rows_of_x, minus, two, three)
    hidden = Tanh(x)
    split = Reshape(hidden, target)
    y = Transpose<perm = [0, 2, 1, 3]>(split)
}
"""

# The batch is folded into another axis, then expanded from a feature's shape.
FOLDED = """
agraph (float[rows, 4, 6] x) => (float[m, 6] flat, float[a, b, c] wide)
<int64[2] shape = {-1, 6}, int64[3] six = {1, 1, 6}>
{
    feature = Tanh(x)
    flat = Reshape(feature, shape)
    long = Shape<start = 0, end = 1>(flat)
    one = Constant<value_ints = [1]>()
    target = Concat<axis = 0>(one, long, one)
    zero = Constant<value = float[1] {2.0}>()
    wide = Expand(zero, target)
}
"""
