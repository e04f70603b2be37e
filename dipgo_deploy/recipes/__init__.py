"""Recipes: one TOML file describes the whole pipeline from model to measured bundle, and ``run_recipe`` runs it."""

from __future__ import annotations

from dipgo_deploy.recipes.recipe import load_recipe
from dipgo_deploy.recipes.runner import RunReport, StageReport, run_recipe
from dipgo_deploy.recipes.sections import Recipe
from dipgo_deploy.recipes.shelf import default_folder, find_recipe, shipped_recipes
from dipgo_deploy.recipes.stages import KINDS

__all__ = [
    "KINDS",
    "Recipe",
    "RunReport",
    "StageReport",
    "default_folder",
    "find_recipe",
    "load_recipe",
    "run_recipe",
    "shipped_recipes",
]
