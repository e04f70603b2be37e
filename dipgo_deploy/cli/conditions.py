"""The file behind ``search --conditions``: the classes or prompts of a search, one per line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dipgo_deploy.core.errors import InputError

__all__ = ["Conditions", "read_conditions"]

_CLASS = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Conditions:
    """Classes or prompts, assigned to images in turn. If both are empty, images cycle through the model's classes."""

    classes: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()


def read_conditions(path: Path | None) -> Conditions:
    """Read class numbers if every line is a number, else prompts. Blank lines are ignored. No file: no conditions."""
    if path is None:
        return Conditions()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): give a text file of class numbers or prompts") from None
    conditions = tuple(line for line in lines if line)
    if not conditions:
        raise InputError(f"{path} contains neither a class number nor a prompt: give one per line")
    if all(_CLASS.fullmatch(line) for line in conditions):
        return Conditions(classes=tuple(map(int, conditions)))
    return Conditions(prompts=conditions)
