"""Small graphs as text, for what is counted and fused in them: tokens in, tokens out, three weights."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import parser

from dipgo_deploy.core.tensors import TensorSpec

TOKENS = ("rows", 8, 16)
IMAGE = ("rows", 16, 8, 8)

_WEIGHTS = [f"float[16, 16] {name} = {{{', '.join(['1'] * 256)}}}" for name in "uvw"]
_HEAD = '<ir_version: 10, opset_import: ["" : 20]>'


def graph(
    body: str, shapes: Mapping[str, tuple] | None = None, gives: str = "y"
) -> tuple[bytes, dict[str, TensorSpec]]:
    """A graph that reads x and gives ``gives``, tokens unless ``shapes`` say otherwise, and specs of what they name."""
    given = {"x": TOKENS, **dict.fromkeys(gives.split(), TOKENS), **(shapes or {})}
    outputs = ", ".join(f"float{_text(given[name])} {name}" for name in gives.split())
    text = f"{_HEAD} g (float{_text(given['x'])} x) => ({outputs}) <{', '.join(_WEIGHTS)}> {{ {body} }}"
    model = parser.parse_model(text)
    onnx.checker.check_model(model)
    return model.SerializeToString(), {name: TensorSpec(name, shape, "float32") for name, shape in given.items()}


def _text(shape: tuple) -> str:
    return f"[{', '.join(map(str, shape))}]"
