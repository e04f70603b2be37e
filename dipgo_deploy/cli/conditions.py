"""The file behind ``search --conditions``: what the images of a search show, a class number or a prompt a line."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dipgo_deploy.core.errors import InputError

if TYPE_CHECKING:
    from dipgo_deploy.models import LoadedModel

__all__ = ["Conditions", "read_conditions"]

_CLASS = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Conditions:
    """Labels that images take in turn, and what they mean where they are prompts; none: all the model has."""

    classes: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()

    def given_to(self, model: LoadedModel) -> LoadedModel:
        """``model``, or a copy whose labels are the prompts."""
        if not self.prompts:
            return model
        from dipgo_deploy.models import with_prompts

        return with_prompts(model, self.prompts)


def read_conditions(path: Path | None) -> Conditions:
    """Class numbers if every line is one, else prompts: a prompt may well be a number. Blank lines do not count."""
    if path is None:
        return Conditions()
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}): give a text file of class numbers or prompts") from None
    found = tuple(line for line in lines if line)
    if not found:
        raise InputError(f"{path} holds neither class number nor prompt: give one a line")
    if all(_CLASS.fullmatch(line) for line in found):
        return Conditions(tuple(map(int, found)))
    return Conditions(tuple(range(len(found))), found)
