"""Graphs: the traced master graph, and the graphs that are cut from it."""

from __future__ import annotations

from dipgo_deploy.graphs.cut import cut, cut_program
from dipgo_deploy.graphs.trace import Trace, load_trace, trace

__all__ = ["Trace", "cut", "cut_program", "load_trace", "trace"]
