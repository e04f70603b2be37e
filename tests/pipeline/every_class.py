"""Every pipeline class of diffusers that has a denoiser with a preset, found by the annotations of its constructor."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from functools import cache
from typing import Any

import diffusers

from dipgo_deploy.models import PRESETS

__all__ = ["annotation", "call_names", "constructor", "denoiser_class", "denoisers", "pipeline_classes"]


@cache
def pipeline_classes() -> Mapping[str, type]:
    """The pipeline classes by name, sorted. Classes whose libraries are not installed are left out."""
    names = sorted(name for name in dir(diffusers) if "Pipeline" in name)
    found = {name: getattr(diffusers, name, None) for name in names}
    return {name: cls for name, cls in found.items() if _is_pipeline(cls) and denoisers(cls)}


def _is_pipeline(cls: Any) -> bool:
    return inspect.isclass(cls) and issubclass(cls, diffusers.DiffusionPipeline)


def constructor(cls: type) -> Mapping[str, inspect.Parameter]:
    """The parameters of a class's constructor, without ``self``."""
    return dict(list(inspect.signature(cls.__init__).parameters.items())[1:])  # type: ignore[misc]


def annotation(parameter: inspect.Parameter) -> tuple[str, ...]:
    """The names of the classes that a parameter may have, without their modules."""
    text = re.sub(r"<(?:class|enum) '([^']*)'>", r"\1", str(parameter.annotation))
    return tuple(name.split(".")[-1] for name in re.findall(r"[\w.]+", text))


def denoisers(cls: type) -> Mapping[str, str]:
    """Name and class of every part of a pipeline that has a preset."""
    parts = {name: denoiser_class(parameter) for name, parameter in constructor(cls).items()}
    return {name: part for name, part in parts.items() if part is not None}


def denoiser_class(parameter: inspect.Parameter) -> str | None:
    """The class with a preset that a parameter's annotation names last, or None."""
    return next((name for name in reversed(annotation(parameter)) if name in PRESETS), None)


def call_names(cls: type) -> Mapping[str, Any]:
    """Names and defaults of the arguments of a pipeline's call."""
    return {name: parameter.default for name, parameter in inspect.signature(cls.__call__).parameters.items()}
