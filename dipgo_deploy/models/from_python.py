"""A model of one's own, named on the command line as ``package.module:attribute``.

The attribute is a LoadedModel, or a callable without arguments that returns one: see ``model_from_module`` and Preset.
Importing it runs its code, so the name comes from the person at the keyboard and never from a file.
"""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.models.loading import LoadedModel

__all__ = ["is_python_name", "model_from_python"]


def is_python_name(source: str) -> bool:
    """Whether ``source`` reads as ``package.module:attribute``."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source) is not None


def model_from_python(source: str, dtype: str) -> LoadedModel:
    """Import the model that ``source`` names, looking in the working directory first, and cast it to ``dtype``.

    Raises InputError where there is no such module or attribute, or it gives something else than a LoadedModel.
    """
    module, _, attribute = source.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{source} cannot be imported ({error}): give package.module:attribute") from None
    finally:
        sys.path.remove(str(Path.cwd()))
    model = found if isinstance(found, LoadedModel) or not callable(found) else found()
    if not isinstance(model, LoadedModel):
        raise InputError(
            f"{source} gives a {type(model).__name__}, a LoadedModel is wanted: return model_from_module(module, "
            "preset=Preset(...))"
        )
    return model.as_dtype(dtype)
