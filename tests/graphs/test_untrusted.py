"""Untrusted graphs are refused, and a digest names the content of a graph."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, parser

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.graphs.untrusted import check_graph, graph_digest, load_graphs
from dipgo_deploy.graphs.weights import WEIGHTS_FILE, read_layout


def graph_with(change: Callable[[onnx.ModelProto], None]) -> bytes:
    """y = x + w with ``w`` at bytes 100 to 104 of the weights file, changed by ``change``."""
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", WEIGHTS_FILE), ("offset", "100"), ("length", "4")):
        weight.external_data.add(key=key, value=value)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "toy", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    change(model)
    return model.SerializeToString()


def set_entry(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    def change(model: onnx.ModelProto) -> None:
        for entry in model.graph.initializer[0].external_data:
            if entry.key == key:
                entry.value = value

    return change


def nest(model: onnx.ModelProto) -> None:
    branch = helper.make_graph([], "branch", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["z"], then_branch=branch, else_branch=branch))


def hide_in_attribute(model: onnx.ModelProto) -> None:
    tensor = TensorProto()
    tensor.CopyFrom(model.graph.initializer[0])
    tensor.external_data[0].value = "/etc/passwd"
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def test_a_plain_graph_passes() -> None:
    check_graph(graph_with(lambda model: None), "toy", {(100, 4)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_entry("location", "../secrets"), "points to '../secrets'"),
        (set_entry("location", "/etc/passwd"), "points to '/etc/passwd'"),
        (set_entry("location", "other.safetensors"), "points to 'other.safetensors'"),
        (set_entry("offset", "96"), "is not a tensor of"),
        (set_entry("length", "400"), "is not a tensor of"),
        (set_entry("offset", "-4"), "is not a tensor of"),
        (set_entry("length", "many"), "has no offset and length"),
        (hide_in_attribute, "points to '/etc/passwd'"),
        (nest, "holds a nested graph"),
        (lambda model: model.opset_import.add(domain="com.evil", version=1), "outside the ONNX standard"),
        (lambda model: model.functions.add(name="f", domain="d"), "uses functions"),
    ],
)
def test_forbidden_contents_are_refused(change: Callable[[onnx.ModelProto], None], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_graph(graph_with(change), "toy", {(100, 4)})


def test_bytes_that_are_not_a_graph() -> None:
    with pytest.raises(InputError, match="toy is not a readable ONNX graph"):
        check_graph(b"\xff\x00garbage", "toy", set())


def test_weights_may_be_links_to_a_regular_file_and_nothing_else(bundle_copy: Path) -> None:
    weights, graph = bundle_copy / "unet" / WEIGHTS_FILE, bundle_copy / "unet" / "subnet_00.onnx"
    assert load_graphs([("subnet_00", graph)], weights).keys() == {"subnet_00"}
    aside = bundle_copy / "aside"
    weights.rename(aside)
    weights.symlink_to(aside)
    assert load_graphs([("subnet_00", graph)], weights).keys() == {"subnet_00"}
    weights.unlink()
    os.link(aside, weights)
    assert load_graphs([("subnet_00", graph)], weights).keys() == {"subnet_00"}
    weights.unlink()
    weights.mkdir()
    with pytest.raises(InputError, match="is not a regular file"):
        load_graphs([("subnet_00", graph)], weights)


@pytest.mark.parametrize("content", [b"", b"1234", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0[]", b'\x05\0\0\0\0\0\0\0{"a":'])
def test_damaged_weights_header(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(content)
    with pytest.raises(InputError, match="safetensors"):
        read_layout(path)


def test_tensor_outside_the_weights_file(tmp_path: Path) -> None:
    header = b'{"w":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}'
    path = tmp_path / WEIGHTS_FILE
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 8)
    with pytest.raises(InputError, match="tensor w lies outside the file"):
        read_layout(path)


DIGEST_TEXT = '<ir_version: 9, opset_import: ["" : 20]> {name} (float[2] x) => (float[2] y) {{ y = {op} (x) }}'


def serialized(name: str = "g", op: str = "Relu") -> bytes:
    return parser.parse_model(DIGEST_TEXT.format(name=name, op=op)).SerializeToString()


def test_the_digest_of_a_graph_ignores_its_name_only():
    assert graph_digest(serialized()) == graph_digest(serialized("h"))
    assert graph_digest(serialized()) != graph_digest(serialized(op="Abs"))
