from __future__ import annotations

import re
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest

from dipgo_deploy.models import REFERENCE_MODELS, read_random_config, shipped_configs
from dipgo_deploy.recipes import KINDS, Recipe, find_recipe, load_recipe, model_calls, shipped_recipes
from dipgo_deploy.recipes.schema import _bare, _types

ENGINES = Path(__file__).parent.parent / "engines"


def test_every_shipped_architecture_has_its_recipe():
    assert {*shipped_configs(), *REFERENCE_MODELS, "demo"} == {*shipped_recipes()}


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipe_can_be_run_as_it_is(name):
    recipe = load_recipe(find_recipe(name))
    for table, section in recipe.schedules.items():
        model_calls.check_search(table, section)
    assert recipe.title and all(target.optional for target in recipe.targets.values())


@pytest.mark.parametrize("name", shipped_configs())
def test_a_recipe_samples_as_the_pipeline_does_and_takes_random_weights(name):
    recipe, config = load_recipe(find_recipe(name)), read_random_config(name)
    sampler = recipe.sampler
    assert (sampler.steps, sampler.guidance_layout) == (config.steps, config.guidance)
    assert sampler.name is None  # the model's own scheduler
    assert re.fullmatch(r"[\w.-]+/[\w.-]+", recipe.model.source)
    assert load_recipe(find_recipe(name), [f"model.random_weights={name}"]).model.source is None


def test_the_readme_describes_every_key_and_stage():
    text = (ENGINES / "README.md").read_text()
    keys = {field.name for field in fields(Recipe)}
    for annotation in _types(Recipe).values():
        section = _bare(annotation)
        section = section.__args__[1] if hasattr(section, "__args__") else section
        keys |= set(_types(section)) if section not in (str,) else set()
    assert [key for key in sorted({*keys, *KINDS}) if not re.search(rf"`[^`]*\b{re.escape(key)}\b[^`]*`", text)] == []


def test_git_keeps_recipes_and_ignores_what_is_built():
    def is_ignored(path: str) -> bool:
        return subprocess.run(["git", "check-ignore", "-q", path], cwd=ENGINES.parent).returncode == 0

    if not (ENGINES.parent / ".git").exists():
        pytest.skip("no checkout")
    assert is_ignored("engines/digits-unet/bundle.json") and is_ignored("engines/mine")
    assert not is_ignored("engines/mine.toml") and not is_ignored("engines/README.md")
