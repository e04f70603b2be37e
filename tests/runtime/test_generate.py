from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dipgo_deploy.bundle import load_bundle
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.sampler import noise_for
from dipgo_deploy.runtime import GenerateOptions, RunOptions, generate


@pytest.fixture(scope="module")
def bundle(bundle_folder: Path):
    return load_bundle(bundle_folder)


def test_an_image_does_not_depend_on_the_batch_it_is_made_in(bundle) -> None:
    options = dict(seed=3, classes=(2, 7), count=3, guidance_scale=2.0)
    together = generate(bundle, GenerateOptions(**options, batch=6))
    by_four = generate(bundle, GenerateOptions(**options, batch=4))
    assert together.shape == (6, 1, 16, 16)
    assert np.abs(together - by_four).max() < 1e-4
    again = generate(bundle, GenerateOptions(**options, batch=6))
    assert np.array_equal(together, again)


def test_all_classes_are_generated_where_none_is_named(bundle) -> None:
    assert generate(bundle, GenerateOptions(guidance_scale=1.5)).shape == (10, 1, 16, 16)


def test_the_backend_is_an_option(bundle) -> None:
    options = dict(seed=3, classes=(2, 7), guidance_scale=2.0)
    by_torch = generate(bundle, GenerateOptions(**options, run=RunOptions("torch")))
    assert np.abs(generate(bundle, GenerateOptions(**options)) - by_torch).max() < 1e-3


def test_seeds_and_classes_matter(bundle) -> None:
    first, second = (generate(bundle, GenerateOptions(seed=s, classes=(1,), guidance_scale=2.0)) for s in (0, 1))
    third = generate(bundle, GenerateOptions(seed=0, classes=(8,), guidance_scale=2.0))
    assert np.abs(first - second).max() > 0.1 and np.abs(first - third).max() > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": (10,)}, "between 0 and 9, got"),
        ({"classes": (-1,)}, "between 0 and 9, got"),
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"batch": 0}, "batch must be at least 1, got 0"),
        ({"guidance_scale": float("nan")}, "must be finite|not finite"),
        ({"run": RunOptions("torch", cuda_graph=True)}, "cuda_graph needs device cuda"),
    ],
)
def test_refusals(bundle, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        generate(bundle, GenerateOptions(**options))


def test_noise_of_a_seed_is_its_own() -> None:
    noise = noise_for([4, 5], (1, 8, 8))
    assert noise.dtype == np.float32
    assert np.array_equal(noise[1], noise_for([5], (1, 8, 8))[0]) and not np.array_equal(noise[0], noise[1])
