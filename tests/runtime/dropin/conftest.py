"""One tiny Stable Diffusion pipeline and its bundle for all tests of the drop-in's behaviour."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from tests.runtime.dropin.pipelines import build, make_bundle


@pytest.fixture(scope="session")
def sd_pipeline(session_folder: Path) -> Path:
    """A pipeline folder as diffusers saves it. Not to be changed."""
    folder = session_folder / "dropin" / "sd"
    with FileLock(session_folder / "dropin-sd.lock"):
        if not folder.exists():
            build("sd", folder)
    return folder


@pytest.fixture(scope="session")
def sd_bundle(sd_pipeline: Path, session_folder: Path) -> Path:
    """Its bundle: DDIM, six steps, concatenated guidance, a random schedule. Not to be changed."""
    folder = session_folder / "dropin" / "bundle"
    with FileLock(session_folder / "dropin-bundle.lock"):
        return folder if folder.exists() else make_bundle("sd", sd_pipeline, folder, sampler="ddim")
