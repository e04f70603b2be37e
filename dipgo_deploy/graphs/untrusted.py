"""Checks on ONNX graphs that come from elsewhere, before anything executes them.

1. The bytes parse, with no external data touched.
2. Only the standard operators; no functions, no nested graphs.
3. Every tensor is either inline or lies, whole, in the one weights file beside the graph, named without a path.
4. Every name that a node reads is an input, a tensor or the output of an earlier node.

What makes two graphs the same: everything but their names, so that a renumbered graph is known again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import onnx  # noqa: TID251 - the home of onnx

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.graphs.weights import WEIGHTS_FILE, read_layout

__all__ = ["check_graph", "graph_digest", "load_graphs"]


_EXTERNAL_KEYS = {"location", "offset", "length", "checksum"}


def load_graphs(files: Iterable[tuple[str, Path]], weights: Path) -> dict[str, bytes]:
    """Read and check graph files, given as (name, path); InputError names the file and what is wrong with it."""
    if weights.is_symlink() or not weights.is_file() or weights.stat().st_nlink != 1:
        raise InputError(f"{weights} is no regular file of its own: export the bundle again")
    spans = set(read_layout(weights).values())
    graphs = {}
    for name, path in files:
        content = path.read_bytes()
        check_graph(content, str(path), spans, weights.name)
        graphs[name] = content
    return graphs


def check_graph(content: bytes, what: str, spans: set[tuple[int, int]], weights: str = WEIGHTS_FILE) -> None:
    """InputError unless ``content`` is a plain ONNX graph with external tensors only at ``spans`` of ``weights``.

    ``spans`` are pairs of offset and length, ``weights`` the name of the one file beside the graph.
    """
    try:
        model = onnx.load_model_from_string(content)
    except Exception:
        raise InputError(f"{what} is no readable ONNX graph: export the bundle again") from None
    if len(model.functions) or any(opset.domain not in ("", "ai.onnx") for opset in model.opset_import):
        raise InputError(f"{what} uses functions or operators outside the ONNX standard: refuse it or export again")
    for node in model.graph.node:
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise InputError(f"{what} holds a nested graph in {node.name}: refuse it or export again")
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _check_tensor(attribute.t, what, spans, weights)
    if len(model.graph.sparse_initializer):
        raise InputError(f"{what} holds sparse weights: refuse it or export again")
    for tensor in model.graph.initializer:
        _check_tensor(tensor, what, spans, weights)
    _check_names(model.graph, what)


def _check_names(graph: onnx.GraphProto, what: str) -> None:
    known = {"", *(value.name for value in graph.input), *(tensor.name for tensor in graph.initializer)}
    for node in graph.node:
        if odd := [name for name in node.input if name not in known]:
            raise InputError(f"{what}: {node.name} reads {odd[0]!r} before it is made: export the bundle again")
        known.update(node.output)
    if odd := [value.name for value in graph.output if value.name not in known]:
        raise InputError(f"{what}: nothing makes the output {odd[0]!r}: export the bundle again")


def _check_tensor(tensor: onnx.TensorProto, what: str, spans: set[tuple[int, int]], weights: str) -> None:
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if odd := sorted(entries.keys() - _EXTERNAL_KEYS):
        raise InputError(f"{what}: {tensor.name} has external data entry {odd[0]!r}: export the bundle again")
    if entries.get("location") != weights:
        raise InputError(f"{what}: {tensor.name} points to {entries.get('location')!r}, not {weights}: refuse it")
    try:
        span = (int(entries.get("offset", "0")), int(entries["length"]))
    except (KeyError, ValueError):
        raise InputError(f"{what}: {tensor.name} has no offset and length: export the bundle again") from None
    if span not in spans:
        raise InputError(f"{what}: {tensor.name} is no tensor of {weights}: export the bundle again")


def graph_digest(content: bytes) -> str:
    """sha256 of a serialized graph without its name; where its weights lie in their file counts."""
    model = onnx.load_model_from_string(content)
    model.graph.name = ""
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
