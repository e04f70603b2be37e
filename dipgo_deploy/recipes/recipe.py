"""Reading a recipe: TOML in, a checked Recipe out, with keys overridden as ``--set`` does.

1. Unknown keys are refused with the known names.
2. Overrides replace keys. An override of one key of a pair of alternatives drops the other key of the pair.
3. Every key is checked against its type, and every table against the others.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dipgo_deploy.core.errors import DipgoError, InputError, UsageError
from dipgo_deploy.recipes.schema import KeyUnknown, check_keys, type_of
from dipgo_deploy.recipes.sections import ModelSection, Recipe, SearchSection

__all__ = ["load_recipe", "recipe_from_document"]

_ALTERNATIVES = (("source", "random_weights"), ("ratio", "calls"))
"""Keys of one table of which a recipe gives exactly one."""

_TAKEN = ("bench", "run", "full")
"""Names that a contender cannot have, because other files of the run or the row of the full run use them."""

_PATHS = ("pruner", "latency")
SHIPPED = "shipped"
"""The value of ``search.pruner`` that names the pruner of the package."""


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read the recipe in ``path``. Paths in the recipe are relative to the folder of the file.

    Args:
        path: a TOML file.
        overrides: ``KEY=VALUE`` each, such as ``search.calls=7``. An empty value removes the key.

    Raises:
        InputError: the file is not a recipe.
        UsageError: an override of an unknown key, or of the wrong type.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path} cannot be read as a recipe ({error}): give a TOML file") from None
    try:
        check_keys(document)
        recipe_from_document(document)
    except (KeyUnknown, DipgoError) as error:
        raise InputError(f"{path}: {error}") from None
    for text in overrides:
        _override(document, text)
    try:
        recipe_from_document(document)
        return recipe_from_document(_with_absolute_paths(document, path.parent))
    except DipgoError as error:
        raise UsageError(f"with {', '.join(overrides)}: {error}") from None


def _override(document: dict[str, Any], text: str) -> None:
    """Set one ``KEY=VALUE`` in ``document``."""
    name, equals, value = text.partition("=")
    keys = name.strip().split(".")
    if not equals or not name.strip():
        raise UsageError(
            f"override {text!r} has no {'key' if equals else 'value'}: give KEY=VALUE, such as search.ratio=0.8"
        )
    try:
        annotation = type_of(keys, document)
    except KeyUnknown as error:
        raise UsageError(f"override {text!r}: {error}") from None
    table = document
    for key in keys[:-1]:
        table = table.setdefault(key, {})
    for pair in _ALTERNATIVES:
        if keys[-1] in pair:
            table.pop(pair[1 - pair.index(keys[-1])], None)
    if value.strip():
        table[keys[-1]] = _typed(name, value.strip(), annotation)
    else:
        table.pop(keys[-1], None)


def _typed(name: str, text: str, annotation: Any) -> Any:
    """``text`` as a TOML value of the key's type. A bare word is a string."""
    candidates: list[Any] = [text]
    try:
        candidates.insert(0, tomllib.loads(f"value = {text}")["value"])
    except tomllib.TOMLDecodeError:
        pass  # a bare word
    errors = []
    for candidate in candidates:
        try:
            TypeAdapter(annotation).validate_json(json.dumps(candidate), strict=True)
            return candidate
        except (ValidationError, TypeError) as error:
            errors.append(error)
    reason = errors[0].errors()[0]["msg"] if isinstance(errors[0], ValidationError) else "dates are not allowed"
    raise UsageError(f"{name} cannot be {text!r} ({_lower(reason)}): give another value")


def recipe_from_document(document: Mapping[str, Any]) -> Recipe:
    """Check a document of known keys.

    Raises:
        InputError: a value of the wrong type, or tables that do not fit each other. The message names the key.
    """
    try:
        recipe = TypeAdapter(Recipe).validate_json(json.dumps(document), strict=True)
    except TypeError as error:
        raise InputError(
            f"a value has a type that recipes do not support ({error}): give text, numbers and lists"
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the recipe"
        raise InputError(f"{where} cannot be {json.dumps(first['input'])[:40]} ({_lower(first['msg'])})") from None
    except DipgoError as error:  # of RunOptions, the only table that checks itself
        raise InputError(f"run.{error}") from None
    _check(recipe)
    return recipe


def _check(recipe: Recipe) -> None:
    _check_alternatives("model", recipe.model, _ALTERNATIVES[0])
    _check_alternatives("search", recipe.search, _ALTERNATIVES[1])
    for name, section in recipe.contenders.items():
        _check_alternatives(f"contenders.{name}", section, _ALTERNATIVES[1])
        if name in (recipe.search.method, *_TAKEN):
            raise InputError(f"contenders.{name}: a file of the run already has this name: choose another name")
        if not re.fullmatch(r"[\w-]+", name):
            raise InputError(f"contenders.{name}: this is not a valid file name: use letters, digits, _ and -")
    for name, target in recipe.targets.items():
        if target.library is None and name not in ("tensorrt", "rtx"):
            raise InputError(f"targets.{name}.library is missing: give tensorrt or rtx")


def _check_alternatives(table: str, section: ModelSection | SearchSection, pair: tuple[str, str]) -> None:
    present = [name for name in pair if getattr(section, name) is not None]
    if len(present) != 1:
        state = "both given" if present else "both missing"
        raise InputError(f"{table}.{pair[0]} and {table}.{pair[1]} are {state}: give one of them")


def _with_absolute_paths(document: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A copy of ``document`` in which paths no longer depend on the folder of the recipe."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    model = copy.get("model", {})
    for key in ("source", "random_weights", "config"):
        if str(model.get(key, "")).startswith(("./", "../")):
            model[key] = str((folder / model[key]).resolve())
    model["loras"] = [str((folder / lora).resolve()) for lora in model.get("loras", [])]
    for section in (copy.get("search", {}), *copy.get("contenders", {}).values()):
        for key in _PATHS:
            if section.get(key) not in (None, SHIPPED):
                section[key] = str((folder / section[key]).resolve())
    return copy


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:].rstrip(".")
