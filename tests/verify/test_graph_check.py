"""One call of every distinct graph, fed PyTorch's slots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dipgo_deploy.bundle import ExportOptions, export, load_bundle
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.program import Run
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import make_contract
from dipgo_deploy.search import SearchOptions, schedule_by_rule
from dipgo_deploy.verify.graph_check import check_graphs, record_first_calls


def bundle_of(model, folder, layout="subnets"):
    contract = make_contract(model, sampler="ddim", steps=6, guidance="concat")
    schedule = schedule_by_rule(trace(model).blocks, contract, SearchOptions("random", 0.5, seed=1))
    return load_bundle(export(model, schedule, folder, ExportOptions(layout=layout)))


@pytest.fixture(scope="module")
def bundle(digits_unet, tmp_path_factory):
    return bundle_of(digits_unet, tmp_path_factory.mktemp("bundles") / "subnets")


def test_every_graph_is_called_once_and_agrees(bundle):
    found = list(check_graphs(bundle, 2))
    runs = [call for call in bundle.program.calls if isinstance(call, Run)]
    assert [check.graph for check in found] == list(dict.fromkeys(run.graph for run in runs))
    assert len(found) == len(bundle.program.graphs) > 1 and max(check.relative for check in found) < 1e-4
    assert "model" not in vars(bundle)  # the live model is gone before the graphs are loaded


def test_a_graph_that_parts_from_pytorch_is_seen(bundle, monkeypatch):
    calls = record_first_calls(replace(bundle), 1)
    assert set(calls[0].given) == {slot for _, slot in calls[0].run.inputs} and calls[0].seconds > 0
    shifted = {slot: array + 0.1 * np.abs(array).max() for slot, array in calls[1].found.items()}
    calls[1] = replace(calls[1], found=shifted)
    monkeypatch.setattr("dipgo_deploy.verify.graph_check.record_first_calls", lambda *given: calls)
    found = [check.relative for check in check_graphs(bundle, 1)]
    assert found[0] < 1e-4 and found[1] == pytest.approx(0.1, rel=0.2)


def test_segments_are_refused(bundle, digits_unet, tmp_path):
    with pytest.raises(InputError, match="has layout segments, subnets are compared: export it so"):
        record_first_calls(bundle_of(digits_unet, tmp_path / "segments", "segments"))
