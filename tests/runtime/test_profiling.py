"""Profiles of the reference models: what is measured, and what is refused."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.latency import LatencyTable
from dipgo_deploy.runtime.profiling import ProfileOptions, ProfileProgress, profile, timed_call_by_call


@pytest.mark.parametrize("target", ["onnxruntime-cpu", "torch-cpu"])
def test_a_profile_measures_every_piece(digits_unet, traced, target):
    trace = traced("digits-unet", "stage")
    options = ProfileOptions(target=target, batch=2, rounds=1, steps=4, threads=1, guidance="concat")
    *progress, table = profile(digits_unet, trace, options)
    assert progress[-1] == ProfileProgress(2, 2)
    assert isinstance(table, LatencyTable)
    assert (table.batch, table.rows, table.target) == (2, 4, target)
    assert sum(table.pieces_ms) > 0.1
    assert 0.3 < sum(table.blocks_ms.values()) / table.forward_ms <= 1


def test_programs_too_large_together_are_timed_apart(digits_unet, traced):
    options = ProfileOptions(batch=1, rounds=1, steps=2, threads=1, memory_bytes=1)
    steps = list(profile(digits_unet, traced("digits-unet", "stage"), options))
    assert steps[-2] == ProfileProgress(18, 18)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"target": "tpu"}, "target 'tpu' cannot be profiled"), ({"rounds": 0}, "rounds 0 makes no sense")],
)
def test_options_that_make_no_sense(change, message):
    with pytest.raises(UsageError, match=message):
        ProfileOptions(**change)


def test_calls_and_marks_lie_on_the_backends_own_stream():
    log = []

    @contextmanager
    def running():
        log.append("enter")
        yield
        log.append("exit")

    contract = SimpleNamespace(latent_shape=(1, 2, 2), guidance="none")
    session = SimpleNamespace(
        program=SimpleNamespace(contract=contract),
        batch=1,
        backend=SimpleNamespace(running=running),
        begin=lambda *_: log.append("begin"),
        calls=[lambda: log.append("call")] * 2,
    )
    clock = SimpleNamespace(
        mark=lambda: log.append("mark") or len(log), elapsed_ms=lambda first, second: second - first
    )
    model = SimpleNamespace(num_classes=None, conditioning=lambda *_: {})
    assert timed_call_by_call(session, model, clock) == [2, 2, 4]
    assert log == ["begin", "enter", "mark", "call", "mark", "call", "mark", "exit"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU: profiles of the CPU are measured above")
def test_a_profile_on_a_gpu(digits_unet, traced):
    options = ProfileOptions(target="torch-cuda", batch=2, rounds=2, steps=4)
    *_, table = profile(digits_unet, traced("digits-unet", "stage"), options)
    assert table.target == "torch-cuda"
