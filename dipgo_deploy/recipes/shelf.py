"""Where recipes are found: shipped recipes by name, a user's own recipes by path."""

from __future__ import annotations

from pathlib import Path

from dipgo_deploy.core.errors import InputError

__all__ = ["default_folder", "find_recipe", "shipped_recipes"]

_INSTALLED = Path(__file__).parent / "shipped"
_CHECKOUT = Path(__file__).parents[2] / "engines"


def _folder() -> Path:
    """The shipped recipes of a wheel, or the ``engines`` folder of a source checkout."""
    return _INSTALLED if _INSTALLED.is_dir() else _CHECKOUT


def shipped_recipes() -> tuple[str, ...]:
    """Names of the recipes that ship with the package."""
    return tuple(sorted(path.stem for path in _folder().glob("*.toml")))


def find_recipe(name: str) -> Path:
    """The file of the recipe ``name``: a path, or the name of a shipped recipe.

    Raises:
        InputError: there is no such recipe.
    """
    if Path(name).is_file():
        return Path(name)
    if name in shipped_recipes():
        return _folder() / f"{name}.toml"
    raise InputError(f"no recipe {name!r}: give a TOML file, or one of {', '.join(shipped_recipes())}")


def default_folder(recipe: Path) -> Path:
    """Where a run of the recipe writes: next to the file, or in ``./engines`` for a shipped recipe."""
    is_installed = recipe.parent == _INSTALLED
    return (Path("engines") if is_installed else recipe.parent) / recipe.stem
