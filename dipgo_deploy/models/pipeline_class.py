"""The diffusers pipeline class that a pipeline folder names, and the defaults of its call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dipgo_deploy.core.disk import read_json
from dipgo_deploy.models.suppress_logging import suppress_diffusers_logging, suppress_transformers_logging

__all__ = ["call_defaults", "pipeline_class"]

_BASE_PIPELINE = "DiffusionPipeline"
_INDEX = "model_index.json"


def pipeline_class(name: object) -> Any:
    """The pipeline class of that name, or None if diffusers has no such pipeline or the name is the base class."""
    import diffusers  # noqa: TID251 - the home of diffusers

    if not isinstance(name, str) or name == _BASE_PIPELINE:
        return None
    # A pipeline that needs an absent package is a placeholder class, which the check below leaves out.
    with suppress_diffusers_logging(), suppress_transformers_logging():
        pipeline = getattr(diffusers, name, None)
    return pipeline if isinstance(pipeline, type) and issubclass(pipeline, diffusers.DiffusionPipeline) else None


def call_defaults(folder: Path | None) -> Mapping[str, Any] | None:
    """Default arguments of the call of a folder's pipeline.

    Args:
        folder: a pipeline folder, another folder or None.

    Returns:
        The defaults by argument. They are empty for the plain ``DiffusionPipeline``, which has no call. None if the
        folder names no pipeline of diffusers.
    """
    index = None if folder is None else folder / _INDEX
    if index is None or not index.is_file():
        return None
    name = read_json(index).get("_class_name")
    if name == _BASE_PIPELINE:
        return {}
    pipeline = pipeline_class(name)
    if pipeline is None:
        return None
    return {argument.name: argument.default for argument in inspect.signature(pipeline.__call__).parameters.values()}
