"""The diffusers pipeline class of a name."""

from __future__ import annotations

from typing import Any

from dipgo_deploy.models.suppress_logging import suppress_diffusers_logging, suppress_transformers_logging

__all__ = ["BASE_PIPELINE", "pipeline_class"]

BASE_PIPELINE = "DiffusionPipeline"
"""Name of the base class, which has no call."""


def pipeline_class(name: object) -> Any:
    """The pipeline class of that name, or None if diffusers has no such pipeline or the name is the base class."""
    import diffusers  # noqa: TID251 - the home of diffusers

    if not isinstance(name, str) or name == BASE_PIPELINE:
        return None
    # A pipeline that needs an absent package is a placeholder class, which the check below leaves out.
    with suppress_diffusers_logging(), suppress_transformers_logging():
        pipeline = getattr(diffusers, name, None)
    return pipeline if isinstance(pipeline, type) and issubclass(pipeline, diffusers.DiffusionPipeline) else None
