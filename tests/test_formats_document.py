"""The example in docs/formats.md is a schedule that loads, and the tables name the fields that exist."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from dipgo_deploy.bench.report import BenchReport, Row
from dipgo_deploy.core.blocks import Block, BlockGraph, Piece
from dipgo_deploy.core.bundle import BundleManifest, FileRecord
from dipgo_deploy.core.contract import Contract, SamplerSpec
from dipgo_deploy.core.engine import EngineRecord, EngineTensor
from dipgo_deploy.core.files import load_schedule
from dipgo_deploy.core.latency import LatencyTable
from dipgo_deploy.core.precision import FallbackNodes, PrecisionRecord
from dipgo_deploy.core.program import Combine, Graph, Program, Run, Sample, Term

TEXT = (Path(__file__).parent.parent / "docs" / "formats.md").read_text(encoding="utf-8")


def test_the_hand_written_schedule_loads(tmp_path):
    file = tmp_path / "schedule.json"
    file.write_text(re.search(r"```json\n(.*?)```", TEXT, re.DOTALL).group(1))
    schedule = load_schedule(file)
    assert schedule.sources(4, "prediction") == ((3, 1.5), (1, -0.5))
    assert [len(step) for step in schedule.computed] == [3, 2, 0, 3, 0]


@pytest.mark.parametrize(
    "noun",
    [
        BlockGraph,
        Block,
        Piece,
        BundleManifest,
        FileRecord,
        Contract,
        EngineRecord,
        EngineTensor,
        FallbackNodes,
        LatencyTable,
        PrecisionRecord,
        SamplerSpec,
        Program,
        Graph,
        Run,
        Combine,
        Sample,
        Term,
        BenchReport,
        Row,
    ],
)
def test_every_field_is_described(noun):
    assert [f.name for f in dataclasses.fields(noun) if f"`{f.name}`" not in TEXT] == []
