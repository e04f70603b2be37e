"""Probes: what is timed, and what is loaded together."""

from __future__ import annotations

from types import SimpleNamespace

from dipgo_deploy.engines.probes import group_by_memory, probe_programs
from dipgo_deploy.models import make_contract


def test_probes_reuse_residuals_where_there_are_any(digits_dit, traced):
    blocks = traced("digits-dit", "stage").blocks
    programs = probe_programs(blocks, make_contract(digits_dit, steps=4), ("subnets", "segments"), 0)
    assert {program.kind for program in programs} == {"output", "residual"}
    assert {program.layout for program in programs} == {"subnets", "segments"}


def test_programs_are_grouped_by_their_weights():
    programs = [SimpleNamespace(graphs=[SimpleNamespace(weight_bytes=size)]) for size in (2, 2, 9, 1, 3)]
    groups = [[program.graphs[0].weight_bytes for program in group] for group in group_by_memory(programs, 4)]
    assert groups == [[2, 2], [9], [1, 3]]
