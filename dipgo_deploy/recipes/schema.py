"""Names of the keys of a recipe, read from the dataclasses of its tables."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Union, get_args, get_origin, get_type_hints

from dipgo_deploy.recipes.sections import Recipe

__all__ = ["KeyUnknown", "check_keys", "type_of"]


class KeyUnknown(Exception):
    """A key that no table has. The message names the known keys."""

    def __init__(self, path: str, known: Sequence[str]) -> None:
        super().__init__(f"{path} is unknown: choose {', '.join(known)}")


def _types(section: Any) -> dict[str, Any]:
    hints = get_type_hints(section)
    return {field.name: hints[field.name] for field in fields(section)}


def _bare(annotation: Any) -> Any:
    """``annotation`` without None."""
    if get_origin(annotation) in (Union, types.UnionType):
        return next(choice for choice in get_args(annotation) if choice is not type(None))
    return annotation


def _is_named(annotation: Any) -> bool:
    """Whether the table contains tables with names chosen by the user."""
    return get_origin(annotation) is dict


def check_keys(document: Mapping[str, Any], section: Any = Recipe, path: str = "") -> None:
    """Refuse a key of ``document`` that its table does not have.

    Args:
        document: a recipe, or the table at ``path``.
        section: the dataclass of the table.
        path: dotted name of the table, with a dot at its end.

    Raises:
        KeyUnknown: at the first unknown key.
    """
    known = _types(section)
    for key, value in document.items():
        if key not in known:
            raise KeyUnknown(f"{path}{key}", list(known))
        kind = _bare(known[key])
        if is_dataclass(kind) and isinstance(value, Mapping):
            check_keys(value, kind, f"{path}{key}.")
        elif _is_named(kind) and isinstance(value, Mapping):
            for name, table in value.items():
                if isinstance(table, Mapping):
                    check_keys(table, get_args(kind)[1], f"{path}{key}.{name}.")


def type_of(keys: Sequence[str], document: Mapping[str, Any]) -> Any:
    """The type of the key at ``keys``, including None if the key is optional.

    Args:
        keys: parts of the dotted name.
        document: the recipe, which knows the names of contenders and targets.

    Raises:
        KeyUnknown: a key that no table has, a name that the recipe does not have, or a table instead of a key.
    """
    annotation: Any = Recipe
    for index, key in enumerate(keys):
        path, section = ".".join(keys[: index + 1]), _bare(annotation)
        if _is_named(section):
            known = list(document.get(keys[index - 1], {}))
            following = get_args(section)[1]
        else:
            known = list(_types(section)) if is_dataclass(section) else []
            following = _types(section).get(key) if is_dataclass(section) else None
        if key not in known:
            raise KeyUnknown(path, known or [".".join(keys[:index])])
        annotation = following
    bare = _bare(annotation)
    if is_dataclass(bare) or _is_named(bare):
        inner = list(_types(bare)) if is_dataclass(bare) else list(document.get(keys[-1], {}))
        raise KeyUnknown(
            f"{'.'.join(keys)} is a table, and as a key it", [f"{'.'.join(keys)}.{name}" for name in inner]
        )
    return annotation
