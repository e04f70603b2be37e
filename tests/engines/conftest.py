"""Engines for the tests: one bundle with real engines, and builds that only pretend."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

from dipgo_deploy.bundle import Bundle, load_bundle
from dipgo_deploy.core.digests import sha256_of
from dipgo_deploy.core.engine import EngineRecord, EngineTensor
from dipgo_deploy.core.files import save_engine_record
from dipgo_deploy.core.progress import finish
from dipgo_deploy.engines.build import build_bundle_engines
from dipgo_deploy.trt.build import engine_path
from dipgo_deploy.trt.job import EngineJob
from dipgo_deploy.trt.store import note_built
from tests.engines.options import FP16
from tests.models.families import tiny
from tests.runtime.bundles import few_graphs

STORE = "dipgo_deploy.trt.store.cache_folder"


@pytest.fixture(scope="session")
def engines_folder(session_folder: Path) -> Path:
    """``bundle``, a tiny DiT with two real engines in float16, and ``store``, the notes of their build."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install 'dipgo-deploy[rtx]'")
    folder = session_folder / "engines"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(STORE, lambda: folder / "store")
        if not (folder / "done").exists():
            finish(build_bundle_engines(few_graphs(tiny("dit"), folder / "bundle", shares=(1, 0.5, 1, 0.5)), FP16))
            (folder / "done").touch()
    return folder


@pytest.fixture
def engine_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store, so that engines of other tests are not copied."""
    monkeypatch.setattr(STORE, lambda: tmp_path / "store")
    return tmp_path / "store"


@pytest.fixture
def built_bundle(engines_folder: Path, engine_store: Path, tmp_path: Path) -> Bundle:
    """A copy of the bundle with real engines, and of their store. A test may change both."""
    shutil.copytree(engines_folder / "store", engine_store)
    return load_bundle(shutil.copytree(engines_folder / "bundle", tmp_path / "built"))


@pytest.fixture
def fake_builds(engine_store: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Builds take no time: an engine is the text of its job's digest. The graphs that were built, in order."""
    graphs: list[str] = []

    def build(job: EngineJob, running: set[subprocess.Popen[str]]) -> EngineRecord:
        engine = engine_path(job)
        engine.parent.mkdir(parents=True, exist_ok=True)
        engine.write_text(job.digest)
        record = fake_record(job, engine)
        save_engine_record(engine.with_suffix(".json"), record)
        note_built(engine, record)
        graphs.append(job.graph)
        return record

    monkeypatch.setattr("dipgo_deploy.trt.build._build", build)
    return graphs


def fake_record(job: EngineJob, engine: Path) -> EngineRecord:
    return EngineRecord(
        graph=job.graph,
        digest=job.digest,
        graph_digest=job.graph_digest,
        weights_digest=job.weights_digest,
        target=job.target,
        version=job.version,
        gpu="+".join(job.gpus),
        precision=job.precision,
        flags=job.flags.names,
        batch=job.batch,
        io={name: EngineTensor("input", (-1,), dtype) for name, dtype in job.dtypes.items()},
        profile=job.profile,
        sha256=sha256_of(engine),
        bytes=engine.stat().st_size,
        weight_bytes=job.weight_bytes,
        activation_bytes=100,
        layers=1,
        seconds=0.1,
        build_memory_bytes=0,
    )
