from __future__ import annotations

import onnx

from dipgo_deploy.graphs.untrusted import graph_digest

TEXT = '<ir_version: 9, opset_import: ["" : 20]> {name} (float[2] x) => (float[2] y) {{ y = {op} (x) }}'


def content(name: str = "g", op: str = "Relu") -> bytes:
    return onnx.parser.parse_model(TEXT.format(name=name, op=op)).SerializeToString()


def test_a_graph_is_the_same_under_another_name_alone():
    assert graph_digest(content()) == graph_digest(content("h"))
    assert graph_digest(content()) != graph_digest(content(op="Abs"))
