"""show prints each of the formats: those that other tests do not come by anyway."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dipgo_deploy.cli.main import run
from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.engine import EngineRecord
from dipgo_deploy.core.files import save_engine_record, save_latency_table, save_precision
from dipgo_deploy.core.latency import LatencyTable
from dipgo_deploy.core.precision import FallbackNodes, PrecisionRecord

DIGEST = "ab" * 32
LATENCY = LatencyTable(
    model_class="UNet2DConditionModel", model_digest=DIGEST, granularity="stage", patterns=("mid_block",),
    dtype="float32", target="onnxruntime-cpu", batch=2, rows=4, threads=1,
    pieces_ms=(1.5, 2.5), blocks_ms={"mid_block": 1.5, "prediction": 2.0}, forward_ms=5.0, call_ms=0.04,
    border_ms_per_mib=0.1, cold_ms_per_mib=0.2, cache_bytes=1 << 20, combine_ms=0.003, combine_ms_per_mib=0.01,
    whole_over_calls=1.0, spread=0.07,
)  # fmt: skip
PRECISION = PrecisionRecord(
    "float16", DIGEST, 0.02, 2, ("sin", "cos"), (FallbackNodes("mid_block", ("a",), "reaches 1e6"),), ("w",), 1e-3, 2e-3
)
ENGINE = EngineRecord(
    "subnet_00", "1" * 64, "2" * 64, "3" * 64, "rtx", "1.2", "sm89", "float16", ("refit",), BatchRange(1, 4, 8),
    {}, {}, DIGEST, 3 << 20, 2 << 20, None, 17, 4.5, 1 << 30,
)  # fmt: skip
SHOWN = {
    "latency": [
        "UNet2DConditionModel abababababab on onnxruntime-cpu, 4 rows, float32",
        "1.500 30.0",
        "outside every block 1.500 30.0",
        "a call 40",
    ],
    "precision": [
        "float16: deviates by 1.0e-03 a graph and 2.0e-03 in the image (0.02 allowed a graph, 2 images)",
        "1 node of mid_block, because reaches 1e6",
        "the feature w, which float16 cannot hold",
        "2 nodes whatever the weights are",
    ],
    "engine": [
        "subnet_00",
        "3.0 MiB",
        "unknown",
        "rtx 1.2 on sm89, float16, 1 to 8 images, best at 4; refit; sha256 abababababab",
    ],
}


@pytest.fixture(params=SHOWN)
def kind(request, tmp_path: Path) -> str:
    """Name of a format, a file of which lies in ``tmp_path``."""
    file = tmp_path / f"{request.param}.json"
    if request.param == "latency":
        save_latency_table(file, LATENCY)
    elif request.param == "precision":
        save_precision(file, PRECISION)
    else:
        save_engine_record(file, ENGINE)
    return str(request.param)


def test_it_is_shown(kind: str, tmp_path: Path, capsys):
    assert run(["show", str(tmp_path / f"{kind}.json")]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert [words for words in SHOWN[kind] if words not in text] == []


def test_it_is_printed_as_json_and_not_drawn(kind: str, tmp_path: Path, capsys):
    file = tmp_path / f"{kind}.json"
    assert run(["show", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["document"] == json.loads(file.read_text())
    assert run(["show", str(file), "--out", str(tmp_path / "p.png")]) == 2
    assert f"is a {kind} file: leave --out out" in capsys.readouterr().err


def test_a_pruner_is_shown_with_its_options(capsys):
    from dipgo_deploy.search.dipgo.pruner_file import shipped_pruner

    file = str(shipped_pruner("digits-unet"))
    assert run(["show", file]) == 0
    text = capsys.readouterr().out
    assert "iterations" in text and "DDIMScheduler" in text and "at granularity stage, kind output" in text
    assert run(["show", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["document"]["granularity"] == "stage"


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("grid.png", b"\x89PNG\r\n\x1a\n\0", "a PNG picture, which show does not read: name an artifact"),
        ("g.onnx", b"\x08\x0a", "an ONNX graph, which show does not read: show the program.json of its bundle"),
        ("g.engine", b"ftrt", "an engine, which show does not read: show the record next to it"),
        ("w.safetensors", b"\x02" + bytes(7) + b"{}", "a safetensors file, which show does not read"),
        ("x.json", b"\x80\x04", "a pickle, which show does not read"),
        ("x.bin", b"ab\0", "a binary file, which show does not read"),
    ],
)
def test_binary_files_are_refused_by_their_kind(tmp_path: Path, capsys, name, content, kind):
    (tmp_path / name).write_bytes(content)
    assert run(["show", str(tmp_path / name)]) == 3
    assert kind in capsys.readouterr().err


def test_a_schedule_is_shown_in_the_order_of_the_blocks_next_to_it(bundle_copy: Path, capsys):
    file = bundle_copy / "schedule.json"
    assert run(["show", str(file)]) == 0
    wanted, document = capsys.readouterr().out, json.loads(file.read_text())
    file.write_text(json.dumps(document, sort_keys=True))
    assert run(["show", str(file)]) == 0 and capsys.readouterr().out == wanted
    document["compute"]["mid_blok"] = document["compute"].pop("mid_block")
    file.write_text(json.dumps(document))
    assert run(["show", str(file)]) == 3
    assert "names block 'mid_blok'" in (error := capsys.readouterr().err) and "(near: mid_block)" in error


def test_the_difference_of_two_artifacts(bundle_copy: Path, tmp_path: Path, capsys):
    other = Path(shutil.copytree(bundle_copy, tmp_path / "other"))
    assert run(["show", str(bundle_copy), "--diff", str(other)]) == 0
    assert "do not differ" in " ".join(capsys.readouterr().out.split())
    schedule = json.loads((other / "schedule.json").read_text())
    schedule["compute"]["mid_block"] = "1" * 6
    (other / "schedule.json").write_text(json.dumps(schedule))
    assert run(["show", str(bundle_copy), "--diff", str(other), "--json"]) == 0
    (difference,) = json.loads(capsys.readouterr().out)["differences"]
    assert (difference["name"], difference["second"]) == ("compute.mid_block", "1" * 6)
    assert run(["show", str(bundle_copy), "--diff", str(other / "schedule.json")]) == 2
    assert "name two artifacts of one kind" in capsys.readouterr().err
