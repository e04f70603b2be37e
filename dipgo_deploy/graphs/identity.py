"""What makes two graphs the same: everything but their names, so that a renumbered graph is known again."""

from __future__ import annotations

import hashlib

import onnx  # noqa: TID251 - the home of onnx

__all__ = ["graph_digest"]


def graph_digest(content: bytes) -> str:
    """sha256 of a serialized graph without its name; where its weights lie in their file counts."""
    model = onnx.load_model_from_string(content)
    model.graph.name = ""
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
