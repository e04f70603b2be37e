"""One call of every distinct graph, fed with PyTorch's slots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from dipgo_deploy.bundle import ExportOptions, export, load_bundle
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.program import Run
from dipgo_deploy.graphs import trace
from dipgo_deploy.models import make_contract
from dipgo_deploy.search.random_schedules import random_schedule
from dipgo_deploy.verify.graph_check import check_graphs, record_first_calls


def bundle_of(model, folder, layout="subnets"):
    contract = make_contract(model, sampler="ddim", steps=6, guidance="concat")
    schedule = random_schedule(trace(model).blocks, contract, "output", np.random.default_rng(1), 0.5)
    return load_bundle(export(model, schedule, folder, ExportOptions(layout=layout)))


@pytest.fixture(scope="module")
def bundle(digits_unet, tmp_path_factory):
    return bundle_of(digits_unet, tmp_path_factory.mktemp("bundles") / "subnets")


def test_every_graph_is_called_once_and_agrees(bundle):
    checks = list(check_graphs(bundle, 2))
    runs = [call for call in bundle.program.calls if isinstance(call, Run)]
    assert [check.graph for check in checks] == list(dict.fromkeys(run.graph for run in runs))
    assert len(checks) == len(bundle.program.graphs) > 1 and max(check.relative for check in checks) < 1e-4
    assert "model" not in vars(bundle)  # the live model was released before the graphs were loaded


def test_a_graph_that_deviates_from_pytorch_is_seen(bundle, monkeypatch):
    calls = record_first_calls(replace(bundle), 1)
    assert set(calls[0].inputs) == {slot for _, slot in calls[0].run.inputs} and calls[0].seconds > 0
    shifted = {slot: array + 0.1 * np.abs(array).max() for slot, array in calls[1].outputs.items()}
    calls[1] = replace(calls[1], outputs=shifted)
    monkeypatch.setattr("dipgo_deploy.verify.graph_check.record_first_calls", lambda *_: calls)
    deviations = [check.relative for check in check_graphs(bundle, 1)]
    assert deviations[0] < 1e-4 and deviations[1] == pytest.approx(0.1, rel=0.2)


def test_segments_are_refused(bundle, digits_unet, tmp_path):
    message = "has layout segments, but only subnets are compared: export it with layout subnets"
    with pytest.raises(InputError, match=message):
        record_first_calls(bundle_of(digits_unet, tmp_path / "segments", "segments"))
