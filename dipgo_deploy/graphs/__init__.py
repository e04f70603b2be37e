"""Graphs: the traced master graph, the cuts made from it, and the bundle they go into."""

from __future__ import annotations

from dipgo_deploy.graphs.cut import cut, cut_program
from dipgo_deploy.graphs.export import ExportOptions, export
from dipgo_deploy.graphs.trace import Trace, load_trace, trace

__all__ = ["ExportOptions", "Trace", "cut", "cut_program", "export", "load_trace", "trace"]
