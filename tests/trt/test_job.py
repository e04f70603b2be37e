from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.engine import ProfileRange, engine_folder
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.files import load_program
from dipgo_deploy.core.tensors import SizeRange, TensorSpec
from dipgo_deploy.trt.job import (
    BuildFlags,
    EngineJob,
    check_batch,
    check_tokens,
    graph_tensors,
    job_from_json,
    job_to_json,
    profile_of,
)

JOB = EngineJob(
    graph="g",
    onnx="g.onnx",
    folder="f",
    timing_cache="t",
    target="rtx",
    version="1.7",
    gpus=("sm89",),
    precision="float16",
    flags=BuildFlags(),
    batch=BatchRange(1, 4, 8),
    profile={"x": ProfileRange((1, 8), (4, 8), (8, 8))},
    dtypes={"x": "float16"},
    graph_digest="a",
    weights_digest="b",
    weight_bytes=1,
)


def test_a_job_survives_a_round_trip_as_json():
    job = replace(JOB, flags=BuildFlags(level=3, static=True))
    assert job_from_json(job_to_json(job)) == job


@pytest.mark.parametrize(
    "changes",
    [
        {"graph_digest": "c"},
        {"weights_digest": "c"},
        {"target": "tensorrt"},
        {"version": "1.8"},
        {"gpus": ("sm86",)},
        {"flags": BuildFlags(level=1)},
        {"profile": {"x": ProfileRange((1, 8), (2, 8), (8, 8))}},
    ],
)
def test_every_input_of_the_build_changes_the_digest(changes):
    assert replace(JOB, **changes).digest != JOB.digest


@pytest.mark.parametrize("changes", [{"graph": "h"}, {"onnx": "h.onnx"}, {"folder": "h"}, {"timing_cache": "h"}])
def test_names_and_paths_do_not_change_the_digest(changes):
    assert replace(JOB, **changes).digest == JOB.digest


def test_flags_are_named_if_they_differ_from_the_default():
    assert BuildFlags().names == ()
    flags = BuildFlags(level=0, workspace_bytes=5, refit=True)
    assert flags.names == ("level=0", "workspace_bytes=5", "refit") and flags.refittable
    assert BuildFlags(strip=True).names == ("strip",) and BuildFlags(strip=True).refittable
    assert not BuildFlags().refittable


def test_every_tensor_that_a_run_binds_has_its_slots_spec(bundle_folder):
    program = load_program(bundle_folder / "program.json")
    tensors = graph_tensors(program)
    for graph in program.graphs:
        assert tensors[graph.name].keys() == {*graph.inputs, *graph.reads, *graph.writes}
        timestep = TensorSpec("timestep", ("rows",), "float32")
        assert tensors[graph.name].get("timestep", timestep) == timestep
        assert all(spec.shape[0] == "rows" for spec in tensors[graph.name].values())


def test_profiles_follow_batch_and_guidance(bundle_folder):
    contract = load_program(bundle_folder / "program.json").contract
    spec = TensorSpec("x", ("5*rows", 8), "float16")
    assert profile_of(contract, BatchRange(1, 2, 4), {}, spec) == ProfileRange((10, 8), (20, 8), (40, 8))
    texts = replace(contract, tokens=SizeRange(1, 77, 1024))
    joint = TensorSpec("x", ("rows", "tokens+16"), "float16")
    sizes = check_tokens(texts, SizeRange(7, 77, 154))
    assert profile_of(texts, BatchRange(1, 2, 4), sizes, joint) == ProfileRange((2, 23), (4, 93), (8, 170))
    assert check_tokens(texts, None) == {"tokens": SizeRange(1, 77, 1024)}
    with pytest.raises(UsageError, match=r"tokens must be MIN-OPT-MAX .* range \(1 to 1024\), got 1-77-2000"):
        check_tokens(texts, SizeRange(1, 77, 2000))
    with pytest.raises(UsageError, match=r"range \(none, it takes no text\), got 1-77-154"):
        check_tokens(replace(contract, tokens=None), SizeRange(1, 77, 154))
    assert check_batch(contract, None) == contract.batch
    for odd in (BatchRange(0, 1, 2), BatchRange(2, 1, 4), BatchRange(1, 4, 65)):
        with pytest.raises(
            UsageError, match="batch must be MIN-OPT-MAX in order and within the contract's 1 to 64 images, got"
        ):
            check_batch(contract, odd)


def test_folders_are_named_after_target_version_and_gpu():
    assert engine_folder("rtx", "1.7", "sm86+sm89") == "rtx-1.7-sm86+sm89"


def test_the_worker_process_starts_without_pytorch_and_onnx():
    code = "import sys, dipgo_deploy.trt.worker; print(sorted({'torch', 'onnx'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
