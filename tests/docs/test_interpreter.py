"""examples/interpreter.py, written from docs/formats.md, draws what the real interpreter draws, bit for bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

import dipgo_deploy as dipgo
from dipgo_deploy.core.files import load_schedule
from dipgo_deploy.runtime import GenerateOptions

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def interpret():
    spec = importlib.util.spec_from_file_location("interpreter", ROOT / "examples" / "interpreter.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.interpret


@pytest.fixture(scope="module")
def six_steps(digits_unet, traced, tmp_path_factory) -> Path:
    traced("digits-unet", "stage")
    schedule = load_schedule(ROOT / "docs" / "pictures" / "six-steps.json")
    return dipgo.export(digits_unet, schedule, tmp_path_factory.mktemp("six") / "bundle")


def test_the_schedule_of_the_drawings(interpret, six_steps):
    real = dipgo.generate(dipgo.load_bundle(six_steps), GenerateOptions(seed=3, classes=(7, 2)))
    np.testing.assert_array_equal(interpret(six_steps, [3, 4], [7, 2]), real)


def test_guidance(interpret, bundle_folder):
    options = GenerateOptions(seed=3, classes=(7, 2), guidance_scale=2.5)
    real = dipgo.generate(dipgo.load_bundle(bundle_folder), options)
    np.testing.assert_array_equal(interpret(bundle_folder, [3, 4], [7, 2], 2.5), real)
