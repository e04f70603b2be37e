"""Networks of a pipeline that run at every step or at some steps, besides the denoiser that is deployed.

Wan 2.2 has a second transformer for the last steps, and other pipelines have priors, decoders or ControlNets. They stay
in PyTorch. A network of that kind is one whose forward takes a time.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from dipgo_deploy.models.suppress_logging import suppress_diffusers_logging

__all__ = ["other_denoisers", "other_denoisers_note"]

_TIMES = frozenset(("timestep", "timesteps", "timestep_ratio", "sigma", "r"))
"""Names that networks of diffusers give their time."""


def other_denoisers(index: Mapping[str, Any], component: str) -> dict[str, str]:
    """The other networks of a pipeline that take a time.

    Args:
        index: the pipeline's ``model_index.json``.
        component: name of the denoiser that is deployed.

    Returns:
        Class by component name.
    """
    parts = {name: entry for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
    return {name: str(entry[1]) for name, entry in parts.items() if name != component and _takes_time(*entry)}


def other_denoisers_note(index: Mapping[str, Any], component: str) -> str:
    """What stays in PyTorch, in one sentence. Empty where the pipeline has only one denoiser.

    Args:
        index: the pipeline's ``model_index.json``.
        component: name of the denoiser that is deployed.

    Returns:
        The sentence.
    """
    others = other_denoisers(index, component)
    if not others:
        return ""
    named = " and ".join(f"{name} ({class_name})" for name, class_name in others.items())
    note = f"only {component} is deployed, and {named} of the pipeline stays in PyTorch"
    boundary = index.get("boundary_ratio")
    if f"{component}_2" in others and isinstance(boundary, int | float):
        note += (
            f": the pipeline uses {component} above {boundary:g} of the training timesteps only, but search, generate "
            "and verify use it for all steps (load_pipeline uses both)"
        )
    return note


def _takes_time(library: object, class_name: object) -> bool:
    import diffusers  # noqa: TID251 - the home of diffusers

    if library != "diffusers" or not isinstance(class_name, str):
        return False
    with suppress_diffusers_logging():
        kind = getattr(diffusers, class_name, None)
    forward: Any = getattr(kind, "forward", None)
    is_network = isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin) and forward is not None
    return is_network and not _TIMES.isdisjoint(inspect.signature(forward).parameters)
