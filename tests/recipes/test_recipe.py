from __future__ import annotations

import pytest

from dipgo_deploy.core.errors import InputError, UsageError
from dipgo_deploy.recipes import load_recipe
from tests.recipes.recipes import TINY, write_recipe


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("search.calls=4", lambda r: (r.search.calls, r.search.ratio) == (4.0, None)),
        ("search.method=fora", lambda r: r.search.method == "fora"),
        ("search.classes=[1, 7]", lambda r: r.search.classes == (1, 7)),
        ("contenders.uniform.ratio=0.3", lambda r: r.contenders["uniform"].ratio == 0.3),
        ("model.random_weights=sd15", lambda r: (r.model.random_weights, r.model.source) == ("sd15", None)),
        ("model.revision=12", lambda r: r.model.revision == "12"),
        ("run.threads=2", lambda r: r.run.threads == 2),
        ("search.iterations=", lambda r: r.search.iterations is None),
        ("pictures.images=2", lambda r: r.pictures.images == 2),
    ],
)
def test_an_override_is_typed_by_the_schema(tmp_path, override, read):
    assert read(load_recipe(write_recipe(tmp_path), [override]))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("search.rato=0.5", "search.rato is unknown: choose method, ratio, calls"),
        ("contenders.fora.ratio=0.5", "contenders.fora is unknown: choose uniform"),
        ("search=1", "search is a table"),
        ("search.calls=many", "search.calls cannot be 'many'"),
        ("search.ratio=2", "search.ratio cannot be 2"),
        ("bench.repeats=1.5", "bench.repeats cannot be '1.5'"),
        ("run.threads=0", "run.threads must be at least 1"),
        ("search.ratio", "has no value: give KEY=VALUE"),
    ],
)
def test_an_override_that_fits_no_key_is_refused_with_the_known_names(tmp_path, override, words):
    with pytest.raises(UsageError, match=words):
        load_recipe(write_recipe(tmp_path), [override])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("ratio = 0.5\niter", "rato = 0.5\niter"), "search.rato is unknown: choose method"),
        (('source = "digits-unet"', ""), "model.source and model.random_weights are both missing"),
        (("iterations = 12", "calls = 3\niterations = 12"), "search.ratio and search.calls are both given"),
        (("steps = 6", 'steps = "six"'), 'sampler.steps cannot be "six"'),
        (("[contenders.uniform]", "[contenders.dipgo]"), "contenders.dipgo: a file of the run already has this name"),
        (("[contenders.uniform]", "[contenders.run]"), "contenders.run: a file of the run already has this name"),
        (("[contenders.uniform]", '[contenders."a/b"]'), "contenders.a/b: this is not a valid file name"),
        (("[verify]", "[targets.gpu]\n[verify]"), "targets.gpu.library is missing: give tensorrt or rtx"),
        (("[verify]", "[verify"), "cannot be read as a recipe"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_by_its_key(tmp_path, change, words):
    with pytest.raises(InputError, match=words):
        load_recipe(write_recipe(tmp_path, TINY.replace(*change)))


def test_paths_are_relative_to_the_recipe(tmp_path):
    text = TINY.replace("digits-unet", "./model").replace("polish = 0", 'polish = 0\npruner = "my.pruner"')
    recipe = load_recipe(write_recipe(tmp_path, text))
    assert (recipe.model.source, recipe.search.pruner) == (str(tmp_path / "model"), str(tmp_path / "my.pruner"))
