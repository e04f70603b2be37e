"""Checks of untrusted ONNX graphs before they are executed, and the digest of a graph.

1. The bytes parse without reading external data.
2. The graph uses only standard operators, no functions and no nested graphs.
3. Every tensor is either inline, or exactly one tensor of the weights file in the graph's folder.
4. Every name that a node reads is an input, a tensor or the output of an earlier node.

The digest of a graph does not depend on the graph's name, so that a renumbered graph keeps its engine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import onnx  # noqa: TID251 - the home of onnx

from dipgo_deploy.core.disk import missing_text
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.graphs.weights import WEIGHTS_FILE, read_layout

__all__ = ["check_graph", "graph_digest", "load_graphs"]

_EXTERNAL_KEYS = {"location", "offset", "length", "checksum"}


def load_graphs(files: Iterable[tuple[str, Path]], weights: Path) -> dict[str, bytes]:
    """Read and check graph files.

    Args:
        files: pairs of a graph's name and its file.
        weights: the weights file of all graphs.

    Returns:
        Serialized graphs by name.

    Raises:
        InputError: a check failed. The message names the file.
    """
    if not weights.is_file():
        raise InputError(f"{weights} {missing_text(weights)}: re-export the bundle")
    spans = set(read_layout(weights).values())
    graphs = {}
    for name, path in files:
        content = path.read_bytes()
        check_graph(content, str(path), spans, weights.name)
        graphs[name] = content
    return graphs


def check_graph(content: bytes, what: str, spans: set[tuple[int, int]], weights: str = WEIGHTS_FILE) -> None:
    """Check one graph.

    Args:
        content: the serialized graph.
        what: the name of the graph in messages.
        spans: offset and length of every tensor of the weights file.
        weights: name of the weights file.

    Raises:
        InputError: a check failed.
    """
    try:
        model = onnx.load_model_from_string(content)
    except Exception:
        raise InputError(f"{what} is not a readable ONNX graph: re-export the bundle") from None
    if len(model.functions) or any(opset.domain not in ("", "ai.onnx") for opset in model.opset_import):
        raise InputError(f"{what} uses functions or operators outside the ONNX standard: re-export the bundle")
    for node in model.graph.node:
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise InputError(f"{what} holds a nested graph in {node.name}: re-export the bundle")
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _check_tensor(attribute.t, what, spans, weights)
    if len(model.graph.sparse_initializer):
        raise InputError(f"{what} holds sparse weights: re-export the bundle")
    for tensor in model.graph.initializer:
        _check_tensor(tensor, what, spans, weights)
    _check_names(model.graph, what)


def _check_names(graph: onnx.GraphProto, what: str) -> None:
    known = {"", *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
    for node in graph.node:
        if odd := [name for name in node.input if name not in known]:
            raise InputError(f"{what}: {node.name} reads {odd[0]!r} before any node makes it: re-export the bundle")
        known.update(node.output)
    if odd := [value.name for value in graph.output if value.name not in known]:
        raise InputError(f"{what}: nothing makes the output {odd[0]!r}: re-export the bundle")


def _check_tensor(tensor: onnx.TensorProto, what: str, spans: set[tuple[int, int]], weights: str) -> None:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if odd := sorted(entries.keys() - _EXTERNAL_KEYS):
        raise InputError(f"{what}: {tensor.name} has external data entry {odd[0]!r}: re-export the bundle")
    if entries.get("location") != weights:
        raise InputError(
            f"{what}: {tensor.name} points to {entries.get('location')!r}, not {weights}: the files were tampered with"
        )
    try:
        span = (int(entries.get("offset", "0")), int(entries["length"]))
    except (KeyError, ValueError):
        raise InputError(f"{what}: {tensor.name} has no offset and length: re-export the bundle") from None
    if span not in spans:
        raise InputError(f"{what}: {tensor.name} is not a tensor of {weights}: re-export the bundle")


def graph_digest(content: bytes) -> str:
    """sha256 of a serialized graph without its name. The places of its weights in their file count."""
    model = onnx.load_model_from_string(content)
    model.graph.name = ""
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
