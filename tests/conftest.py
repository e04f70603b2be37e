"""Fixtures of all tests: reference models, their traces in one cache for the session and all workers, and bundles."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from filelock import FileLock


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for this session, the same in every xdist worker."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session", autouse=True)
def trace_cache(session_folder: Path) -> Iterator[Path]:
    """DIPGO_CACHE for this session only, because the cache does not see every change of our own code.

    DIPGO_TEST_CACHE names a folder that outlives the session. Use it while the trace does not change.
    """
    folder = Path(os.environ.get("DIPGO_TEST_CACHE") or session_folder / "dipgo-cache")
    folder.mkdir(parents=True, exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIPGO_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """One thread for each worker, so that two workers fit two cores and sums have a fixed order."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def reference_model() -> Callable[[str], object]:
    """``reference_model(name)``: a shipped model, loaded once."""
    from dipgo_deploy.models import load_model

    return cache(load_model)


@pytest.fixture(scope="session")
def digits_unet(reference_model):
    return reference_model("digits-unet")


@pytest.fixture(scope="session")
def digits_dit(reference_model):
    return reference_model("digits-dit")


@pytest.fixture(scope="session")
def traced(reference_model, trace_cache: Path):
    """``traced(name, granularity)``: the trace of a shipped model. Only one worker spends the 10 to 20 s."""
    from dipgo_deploy.graphs import trace

    @cache
    def get(name: str, granularity: str):
        with FileLock(trace_cache / f"{name}-{granularity}.lock"):
            return trace(reference_model(name), granularity=granularity)

    return get


@pytest.fixture(scope="session")
def bundle_folder(reference_model, traced, session_folder: Path) -> Path:
    """A bundle of digits-unet: six DDIM steps under guidance, a random schedule. Read-only: see bundle_copy."""
    import numpy as np

    from dipgo_deploy.bundle import export
    from dipgo_deploy.models import make_contract
    from dipgo_deploy.search.random_schedules import random_schedule

    model, graph = reference_model("digits-unet"), traced("digits-unet", "stage").blocks
    contract = make_contract(model, steps=6, guidance="concat")
    schedule = random_schedule(graph, contract, "output", np.random.default_rng(5), 0.6)
    folder = session_folder / "bundle"
    with FileLock(session_folder / "bundle.lock"):
        return folder if folder.exists() else export(model, schedule, folder)


@pytest.fixture
def bundle_copy(bundle_folder: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that a test may damage."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "bundle"))


@pytest.fixture
def engine_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """DIPGO_CACHE of this test alone, so that engines which other tests built are not trusted here."""
    folder = tmp_path / "engine-cache"
    monkeypatch.setenv("DIPGO_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def sd_pipeline(session_folder: Path) -> Path:
    """A tiny Stable Diffusion pipeline as diffusers saves it. Read-only."""
    from tests.pipeline.pipelines import build

    folder = session_folder / "dropin" / "sd"
    with FileLock(session_folder / "dropin-sd.lock"):
        if not folder.exists():
            build("sd", folder)
    return folder


@pytest.fixture(scope="session")
def sd_bundle(sd_pipeline: Path, session_folder: Path) -> Path:
    """The bundle of sd_pipeline: DDIM, six steps, concatenated guidance, a random schedule. Read-only."""
    from tests.pipeline.pipelines import make_bundle

    folder = session_folder / "dropin" / "bundle"
    with FileLock(session_folder / "dropin-bundle.lock"):
        return folder if folder.exists() else make_bundle("sd", sd_pipeline, folder, sampler="ddim")
