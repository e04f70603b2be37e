"""A user's own model, named as ``package.module:attribute``.

The attribute is a LoadedModel, or a callable without arguments that returns a LoadedModel. ``model_from_module`` with a
Preset makes one. An import runs code, so such a name must come from the user and never from a file.
"""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from safetensors import SafetensorError, safe_open

from dipgo_deploy.core.errors import InputError, first_line
from dipgo_deploy.models.loaded_model import LoadedModel

__all__ = ["is_python_name", "model_from_python", "with_weights"]


def is_python_name(source: str) -> bool:
    """Whether ``source`` has the form ``package.module:attribute``."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source) is not None


def model_from_python(source: str, dtype: str) -> LoadedModel:
    """Import a model. The working directory is searched first.

    Args:
        source: ``package.module:attribute``.
        dtype: a name of DTYPES that the model is cast to.

    Returns:
        The model.

    Raises:
        InputError: there is no such module or attribute, it raises, or it is not a LoadedModel.
    """
    module, _, attribute = source.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        value = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"{source} cannot be imported ({error}): give package.module:attribute") from None
    finally:
        sys.path.remove(str(Path.cwd()))
    try:
        model = value() if callable(value) and not isinstance(value, LoadedModel) else value
    except Exception as error:  # The user's code may raise anything.
        raise InputError(f"{source} makes no model ({first_line(error)}): fix it") from error
    if not isinstance(model, LoadedModel):
        raise InputError(
            f"{source} gives {type(model).__name__} instead of a LoadedModel: return model_from_module(module, "
            "preset=Preset(...))"
        )
    return model.as_dtype(dtype)


def with_weights(model: LoadedModel, file: Path, digest: str) -> LoadedModel:
    """The model that a bundle was traced from: the model itself, or a copy with the bundle's weights.

    Args:
        model: the user's model, possibly with other weights.
        file: the bundle's safetensors file.
        digest: digest of the traced model.

    Returns:
        A model with that digest.

    Raises:
        InputError: the file is damaged, or the model has another class or other settings than the traced model.
    """
    if model.has_digest(digest):
        return model
    mismatch = f"{model.class_name} is not the model that {file} was traced from"
    remedy = "give the class and the settings that were exported"
    module = model.copied(model.dtype).module
    try:
        with safe_open(file, "pt") as stored:
            names = module.state_dict().keys() & stored.keys()  # load_state_dict names the missing keys
            module.load_state_dict({name: stored.get_tensor(name) for name in names})
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file} cannot be read ({first_line(error)}): export the bundle again") from None
    except RuntimeError as error:
        # The first line of load_state_dict's message names the class only.
        lines = [" ".join(line.split()) for line in str(error).splitlines()]
        raise InputError(f"{mismatch} ({lines[min(1, len(lines) - 1)]}): {remedy}") from None
    restored = replace(model, module=module)
    if not restored.has_digest(digest):
        behaviour = (
            f" (it differs from its class in: {model.behaviour.summary or 'nothing'})"
            if model.behaviour.is_comparable
            else ""
        )
        raise InputError(f"{mismatch}{behaviour}: {remedy}")
    return restored
