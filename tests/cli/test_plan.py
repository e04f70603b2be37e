"""profile, plan and search --latency, as a user types them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from dipgo_deploy.cli.main import run
from dipgo_deploy.core.files import load_latency_table, load_schedule, save_latency_table
from dipgo_deploy.core.latency import LatencyTable
from dipgo_deploy.core.progress import Work
from tests.cli.refusal import refused


@pytest.fixture(scope="module")
def latency(tmp_path_factory, traced):
    traced("digits-unet", "stage")  # by one worker only
    file = tmp_path_factory.mktemp("latency") / "latency.json"
    assert run(["profile", "digits-unet", "--rounds", "1", "--batch", "2", "--threads", "1", "--out", str(file)]) == 0
    return file


def test_profile_writes_a_table_with_its_command(latency):
    table = load_latency_table(latency)
    assert table.environment["profile"]["rounds"] == 1
    assert "cores" in table.environment and table.environment["command"].startswith("dipgo-deploy")


def test_plan_prints_both_layouts(latency, bundle_folder, capsys):
    assert run(["plan", str(bundle_folder), "--batch", "2", "--json"]) == 0
    free = json.loads(capsys.readouterr().out.splitlines()[-1])
    between = sum(layout["device_bytes"] for layout in free["layouts"]) // 2
    code = run(["plan", str(bundle_folder), "--gpu-memory", str(between), "--latency", str(latency), "--json"])
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (code, document["recommended"]) == (0, "segments")
    assert all(layout["latency_ms"] > 0 for layout in document["layouts"])


def test_plan_as_a_table(bundle_folder, capsys):
    assert run(["plan", str(bundle_folder)]) == 0
    text = capsys.readouterr().out
    assert "take subnets: both fit: this one makes fewer calls" in text
    assert "float32" in text and "≈" in text and "not counted" not in text
    assert run(["plan", str(bundle_folder), "--fp16", "--target", "tensorrt"]) == 0
    text = capsys.readouterr().out
    assert "float16" in text and "No engine of the TensorRT library was measured yet: its code is not counted" in text


def test_a_table_of_a_busy_machine_is_warned_of_and_advises_nothing(
    latency, bundle_folder, tmp_path, capsys, monkeypatch
):
    table, busy = replace(load_latency_table(latency), spread=0.82), tmp_path / "busy.json"
    save_latency_table(busy, table)
    assert run(["plan", str(bundle_folder), "--batch", "2", "--latency", str(busy)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "within the error of the latency table (82%)" in text and "single calls are wrong by ±82%" in text
    assert "no recommendation" in text and "take " not in text
    assert run(["show", str(busy)]) == 0
    assert "the estimated time of a call is wrong by ±82%" in capsys.readouterr().out
    monkeypatch.setattr("dipgo_deploy.engines.profile", lambda *_: iter_of(table))
    assert run(["profile", "digits-unet", "--out", str(tmp_path / "again.json")]) == 0
    assert "warning: the estimated time of a call is wrong by ±82%, as on a busy machine" in capsys.readouterr().err


def iter_of(table: LatencyTable) -> Work[LatencyTable]:
    yield from ()
    return table


def test_a_plan_that_fits_nowhere_is_printed_and_fails(bundle_folder, capsys):
    assert run(["plan", str(bundle_folder), "--gpu-memory", "1K", "--json"]) == 5
    printed = capsys.readouterr()
    assert json.loads(printed.out.splitlines()[-1])["recommended"] is None
    assert "error: no layout fits: even one engine at a time needs" in printed.err


def test_plan_in_half_precision_refuses_times_of_float32(latency, bundle_folder, capsys):
    refused(["plan", bundle_folder, "--fp16", "--latency", latency], "measured for dtype float32", capsys)
    refused(["plan", bundle_folder, "--fp16", "--bf16"], "exclude each other: choose one", capsys, code=2)


def test_profile_refuses_what_numpy_lacks_before_it_traces(tmp_path, capsys):
    asked = ["profile", "digits-unet", "--dtype", "bfloat16", "--out", tmp_path / "latency.json"]
    refused(asked, "ONNX Runtime has no bfloat16 on the CPU: choose another --backend or --dtype", capsys, code=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA GPU: nothing to refuse")
def test_profile_on_a_missing_gpu_loads_no_model(tmp_path, capsys):
    asked = ["profile", "no-such-model", "--backend", "torch", "--device", "cuda", "--out", tmp_path / "latency.json"]
    refused(asked, "PyTorch finds no CUDA GPU here: use device cpu", capsys, code=5)


def test_profile_of_engines_needs_a_gpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("DIPGO_CUDA_DRIVER", "libno-such-driver.so")
    asked = ["profile", "digits-unet", "--out", tmp_path / "new" / "latency.json"]
    refused([*asked, "--backend", "rtx", "--fp16"], "target rtx runs only on an NVIDIA GPU", capsys, code=5)
    refused(
        [*asked, "--fp16"],
        "precision is for onnxruntime on cuda, tensorrt and rtx, not for onnxruntime-cpu",
        capsys,
        code=2,
    )


def test_times_of_half_precision_price_plan_and_search(latency, bundle_folder, tmp_path, capsys):
    """As a profile of engines in float16 would: the model's digest, the graphs' dtype."""
    table = replace(load_latency_table(latency), dtype="float16", target="rtx")
    save_latency_table(tmp_path / "half.json", table)
    assert run(["plan", str(bundle_folder), "--fp16", "--latency", str(tmp_path / "half.json"), "--json"]) == 0
    assert all(layout["latency_ms"] > 0 for layout in json.loads(capsys.readouterr().out.splitlines()[-1])["layouts"])
    asked = ["search", "digits-unet", "--method", "random", "--ratio", "0.6", "--steps", "10"]
    out = ["--out", str(tmp_path / "schedule.json"), "--json"]
    assert run([*asked, "--latency", str(tmp_path / "half.json"), *out]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["time_ratio"] == pytest.approx(0.6, abs=0.0126)
    assert load_schedule(tmp_path / "schedule.json").origin["latency"] == "rtx"


def test_search_by_time_reaches_the_asked_share_of_it(latency, tmp_path, capsys):
    out = tmp_path / "schedule.json"
    asked = [
        "search",
        "digits-unet",
        "--method",
        "random",
        "--ratio",
        "0.6",
        "--steps",
        "10",
        "--latency",
        str(latency),
    ]
    assert run([*asked, "--out", str(out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["time_ratio"] == pytest.approx(0.6, abs=0.0126)
    assert load_schedule(out).origin["latency"] == "onnxruntime-cpu"


def test_a_table_of_another_model_is_refused(latency, tmp_path, capsys, traced):
    traced("digits-dit", "stage")
    asked = ["search", "digits-dit", "--latency", str(latency), "--out", str(tmp_path / "schedule.json")]
    assert run(asked) == 3
    assert "the latency table was measured for model_class UNet2DConditionModel" in capsys.readouterr().err
