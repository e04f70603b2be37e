"""Graphs: the traced master graph, the cuts made from it, and the bundle they go into."""

from __future__ import annotations

from dipgo_deploy.graphs.trace import Trace, load_trace, trace

__all__ = ["Trace", "load_trace", "trace"]
