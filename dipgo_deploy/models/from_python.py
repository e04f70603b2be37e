"""A model of one's own, named on the command line as ``package.module:attribute``.

The attribute is a LoadedModel, or a callable without arguments that returns one: see ``model_from_module`` and Preset.
Importing it runs its code, so the name comes from the person at the keyboard and never from a file.
"""

from __future__ import annotations

import re
import sys
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from safetensors import SafetensorError, safe_open

from dipgo_deploy.core.errors import InputError, first_line
from dipgo_deploy.models.loading import LoadedModel

__all__ = ["is_python_name", "model_from_python", "with_weights"]


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
    try:
        model = found if isinstance(found, LoadedModel) or not callable(found) else found()
    except Exception as error:  # of somebody's code, whatever it is
        raise InputError(f"{source} raised {type(error).__name__} ({first_line(error)}): mend it") from error
    if not isinstance(model, LoadedModel):
        raise InputError(
            f"{source} gives {type(model).__name__}, a LoadedModel is wanted: return model_from_module(module, "
            "preset=Preset(...))"
        )
    return model.as_dtype(dtype)


def with_weights(model: LoadedModel, file: Path, digest: str) -> LoadedModel:
    """The model as it was traced with ``digest``: itself if it is that one, else a copy with the weights of ``file``.

    Raises InputError where that is not the traced model either (another class, or another shape of it), or the file is
    damaged.
    """
    if model.digest == digest:
        return model
    other = f"{model.class_name} is not the model that {file} was traced from"
    module = deepcopy(model.module)
    try:
        with safe_open(file, "pt") as stored:
            names = module.state_dict().keys() & stored.keys()  # what the file lacks, load_state_dict names
            module.load_state_dict({name: stored.get_tensor(name) for name in names})
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read ({first_line(error)}): export the bundle again") from None
    except RuntimeError as error:
        lines = [" ".join(line.split()) for line in str(error).splitlines()]
        raise InputError(
            f"{other} ({lines[min(1, len(lines) - 1)]}): give the class and the settings that were exported"
        ) from None
    found = replace(model, module=module)
    if found.digest != digest:
        raise InputError(f"{other}: give the class and the settings that were exported")
    return found
