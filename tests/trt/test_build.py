"""Real engines of one small graph, built by TensorRT for RTX without a GPU in about a second each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.engine import ProfileRange
from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.core.files import load_engine_record
from dipgo_deploy.core.progress import finish
from dipgo_deploy.graphs.untrusted import graph_digest
from dipgo_deploy.trt.build import BuiltEngine, build_engines, drop_stale
from dipgo_deploy.trt.job import BuildFlags, EngineJob, job_to_json
from dipgo_deploy.trt.store import check_trusted, is_trusted

rtx = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'dipgo-deploy[rtx]'")
pytestmark = pytest.mark.tensorrt

GRAPH = """
<ir_version: 9, opset_import: ["" : 20]>
{name} (float16[rows, 8] x) => (float16[rows, 8] y)
<float16[8, 8] w = {{{values}}}>
{{
  m = MatMul (x, w)
  y = Relu (m)
}}
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines built here must not be known from another test."""
    monkeypatch.setenv("DIPGO_CACHE", str(tmp_path / "cache"))


def job(folder: Path, name: str = "g", scale: int = 1, **changes: object) -> EngineJob:
    text = GRAPH.format(name=name, values=", ".join(str(i % 3 * scale) for i in range(64)))
    content = onnx.parser.parse_model(text).SerializeToString()
    path = folder / f"{name}.onnx"
    folder.mkdir(exist_ok=True)
    path.write_bytes(content)
    plain = EngineJob(
        graph=name,
        onnx=str(path),
        folder=str(folder / "engines"),
        timing_cache=str(folder / "cache" / "t.timing"),
        target="rtx",
        version=rtx.__version__,
        gpus=("sm89",),
        precision="float16",
        flags=BuildFlags(),
        batch=BatchRange(1, 4, 8),
        profile={"x": ProfileRange((1, 8), (4, 8), (8, 8))},
        dtypes={"x": "float16", "y": "float16"},
        graph_digest=graph_digest(content),
        weights_digest="0" * 64,
        weight_bytes=128,
    )
    return replace(plain, **changes)


def build(*jobs: EngineJob, workers: int = 1) -> tuple[BuiltEngine, ...]:
    return finish(build_engines(jobs, workers))


def statuses(*jobs: EngineJob, workers: int = 1) -> dict[str, str]:
    return {engine.record.graph: engine.status for engine in build(*jobs, workers=workers)}


def test_a_build_writes_the_engine_its_record_and_its_log(tmp_path: Path) -> None:
    one_job, shown = job(tmp_path / "b"), []
    (engine,) = finish(build_engines([one_job]), shown.append)
    folder = Path(one_job.folder)
    record = load_engine_record(folder / "g.json")
    assert record == engine.record and engine.status == "built"
    assert [(progress.share, progress.text) for progress in shown] == [(1.0, "g built")]
    assert (folder / "g.engine").stat().st_size == record.bytes > 0
    assert {name: (t.mode, t.shape, t.dtype) for name, t in record.io.items()} == {
        "x": ("input", (-1, 8), "float16"),
        "y": ("output", (-1, 8), "float16"),
    }
    assert (record.target, record.version, record.gpu) == ("rtx", rtx.__version__, "sm89")
    assert record.profile == one_job.profile and record.layers >= 2 and record.build_memory_bytes > 1 << 20
    assert record.tools["polygraphy"] and record.digest == one_job.digest
    assert "Building engine with configuration" in (folder / "g.log").read_text()
    check_trusted(folder / "g.engine", record)


def test_only_changed_engines_are_built_again(tmp_path: Path) -> None:
    one, two = job(tmp_path / "b", "one"), job(tmp_path / "b", "two", 2)
    assert statuses(one, two, workers=2) == {"one": "built", "two": "built"}
    assert statuses(one, two) == {"one": "up to date", "two": "up to date"}
    assert statuses(job(tmp_path / "b", "one", 3), two) == {"one": "built", "two": "up to date"}
    assert statuses(job(tmp_path / "b", "one", 3), replace(two, weights_digest="1" * 64))["two"] == "built"


def test_a_renumbered_graph_and_another_bundle_copy_existing_engines(tmp_path: Path) -> None:
    first = job(tmp_path / "b", "one")
    assert statuses(first) == {"one": "built"}
    assert statuses(job(tmp_path / "b", "renamed")) == {"renamed": "copied"}
    assert statuses(job(tmp_path / "elsewhere", "one")) == {"one": "copied"}
    drop_stale(Path(first.folder), ["renamed"])
    left = {path.name for path in Path(first.folder).iterdir()}
    assert left == {"renamed.engine", "renamed.json"}


def test_an_engine_of_another_machine_is_built_again(tmp_path: Path, monkeypatch) -> None:
    one_job = job(tmp_path / "b")
    assert statuses(one_job) == {"g": "built"}
    monkeypatch.setenv("DIPGO_CACHE", str(tmp_path / "another machine"))
    assert statuses(one_job) == {"g": "built"}
    check_trusted(Path(one_job.folder) / "g.engine", load_engine_record(Path(one_job.folder) / "g.json"))
    assert statuses(one_job) == {"g": "up to date"}


def test_two_graphs_that_swap_names_are_not_built_again(tmp_path: Path) -> None:
    statuses(job(tmp_path / "b", "one"), job(tmp_path / "b", "two", 2))
    one, two = job(tmp_path / "b", "two"), job(tmp_path / "b", "one", 2)
    assert statuses(one, two) == {"one": "copied", "two": "copied"}
    for swapped in (one, two):
        assert load_engine_record(Path(swapped.folder) / f"{swapped.graph}.json").digest == swapped.digest
    assert statuses(one, two) == {"one": "up to date", "two": "up to date"}


def test_a_damaged_engine_is_built_again(tmp_path: Path) -> None:
    one_job = job(tmp_path / "b")
    statuses(one_job)
    (Path(one_job.folder) / "g.engine").write_bytes(b"short")
    assert statuses(one_job) == {"g": "built"}


def test_a_static_engine_has_fixed_shapes_and_no_profile(tmp_path: Path) -> None:
    one_job = job(tmp_path / "b", flags=BuildFlags(static=True), batch=BatchRange(4, 4, 4))
    (engine,) = build(one_job)
    assert engine.record.io["x"].shape == engine.record.io["y"].shape == (4, 8)
    assert engine.record.profile == {} and engine.record.flags == ("static",)


def test_options_reach_the_builder(tmp_path: Path) -> None:
    flags = BuildFlags(level=2, workspace_bytes=1 << 28, version_compatible=True, weight_streaming=True)
    (engine,) = build(job(tmp_path / "b", flags=flags, gpus=("sm86", "sm89")))
    log = (tmp_path / "b" / "engines" / "g.log").read_text()
    assert "VERSION_COMPATIBLE" in log and "WEIGHT_STREAMING" in log and "WORKSPACE: 256.00 MiB" in log
    assert engine.record.gpu == "sm86+sm89" and "workspace_bytes=268435456" in engine.record.flags


def test_a_network_of_another_type_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the program needs 'y' in float32, the network has float16: re-export"):
        statuses(job(tmp_path / "b", dtypes={"x": "float16", "y": "float32"}))
    assert not list((tmp_path / "b" / "engines").glob("*.engine"))


def test_errors_of_the_parser_are_passed_on(tmp_path: Path) -> None:
    broken = job(tmp_path / "b")
    text = Path(broken.onnx).read_bytes().replace(b"MatMul", b"MatMux")
    Path(broken.onnx).write_bytes(text)
    with pytest.raises(InputError, match=r"the ONNX parser refuses .* \(MatMux .*Plugin not found.*see .*g\.log"):
        statuses(broken)


def test_a_worker_that_dies_leaves_one_line_and_what_was_finished(tmp_path: Path, monkeypatch) -> None:
    good = job(tmp_path / "b", "good")
    statuses(good)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InputError, match=r"the build of bad ended with exit code 1: see .*bad\.log"):
        statuses(good, job(tmp_path / "b", "bad", 2))
    assert (Path(good.folder) / "good.engine").is_file()


def test_a_killed_build_goes_on_at_the_next_graph(tmp_path: Path) -> None:
    jobs = [job(tmp_path / "b", f"g{index}", index + 1) for index in range(3)]
    script = (
        "import sys\nfrom dipgo_deploy.trt.build import build_engines\n"
        "from dipgo_deploy.trt.job import job_from_json\n"
        "list(build_engines([job_from_json(line) for line in sys.stdin.read().splitlines()]))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, text=True, start_new_session=True)
    process.stdin.write("\n".join(job_to_json(one_job) for one_job in jobs))
    process.stdin.close()
    first = Path(jobs[0].folder) / "g0.json"
    deadline = time.monotonic() + 120
    while not (first.is_file() and is_trusted(load_engine_record(first))) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.stem for path in first.parent.glob("*.json") if is_trusted(load_engine_record(path))}
    assert "g0" in kept and len(kept) < 3
    status_of_graph = statuses(*jobs)
    assert {name for name, status in status_of_graph.items() if status == "up to date"} == kept and set(
        status_of_graph
    ) == {
        "g0",
        "g1",
        "g2",
    }


def test_no_worker_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="workers must be at least 1, got 0"):
        statuses(job(tmp_path / "b"), workers=0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"level": 6}, "level must be 0 to 5, got 6"),
        ({"level": -1}, "level must be 0 to 5, got -1"),
        ({"workspace_bytes": 0}, "workspace_bytes must be at least 1, got 0"),
    ],
)
def test_flags_out_of_range_are_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        BuildFlags(**flags)
