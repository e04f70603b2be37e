"""The scheduler of a pipeline folder, as diffusers' pipeline uses it.

1. ``model_index.json`` names the class, whatever class the scheduler's own config names.
2. Constructors of pipelines change the configs of old schedulers and denoisers: ``steps_offset``, ``clip_sample``,
   ``skip_prk_steps``, ``sample_size``. Some convert the scheduler to another class. The constructor itself is run, with
   the scheduler, the denoiser and no other component, so these rules are not copied.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from dipgo_deploy.core.errors import DipgoError
from dipgo_deploy.models.pipeline_class import pipeline_class
from dipgo_deploy.models.schedulers import SCHEDULER_ERRORS, scheduler_type
from dipgo_deploy.models.sources.config_file import read_config
from dipgo_deploy.models.suppress_logging import suppress_diffusers_logging, suppress_transformers_logging

__all__ = ["pipeline_scheduler_config"]

_SCHEDULER = "scheduler"


def pipeline_scheduler_config(
    folder: Path, index: Mapping[str, Any] | None, component: str, module: nn.Module
) -> dict[str, Any]:
    """The config of a folder's scheduler, as the folder's pipeline uses it.

    Args:
        folder: a pipeline folder, or another folder with a scheduler in it.
        index: its ``model_index.json``, None if there is none.
        component: the denoiser's name in the pipeline.
        module: the denoiser. The pipeline's constructor may change its config.

    Returns:
        Every option and ``_class_name``. Empty if there is no scheduler. As in the file if diffusers cannot build it: a
        contract with another sampler may still use its noise schedule.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / _SCHEDULER / "scheduler_config.json"
    entry = (index or {}).get(_SCHEDULER)
    scheduler = None
    config: dict[str, Any] = {}
    if path.is_file():
        config = read_config(path)
        if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str):
            config["_class_name"] = entry[1]
        scheduler = _built(config)
    scheduler = _in_pipeline(index or {}, scheduler, component, module)
    return config if scheduler is None else {**scheduler.config, "_class_name": type(scheduler).__name__}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of diffusers, which warns about every config that it changes."""
    with warnings.catch_warnings(), suppress_diffusers_logging(), suppress_transformers_logging():
        warnings.simplefilter("ignore")
        yield


def _built(config: Mapping[str, Any]) -> Any:
    """The scheduler of a config, or None if diffusers cannot build it."""
    try:
        with _quiet():
            return scheduler_type(str(config.get("_class_name"))).from_config(dict(config))
    except (DipgoError, ImportError, *SCHEDULER_ERRORS):
        return None


def _in_pipeline(index: Mapping[str, Any], scheduler: Any, component: str, module: nn.Module) -> Any:
    """The scheduler after the pipeline's constructor, which may change the denoiser's config too."""
    pipeline_type = pipeline_class(index.get("_class_name"))
    if pipeline_type is None:
        return scheduler
    parameters = inspect.signature(pipeline_type.__init__).parameters
    settings = {name: value for name, value in index.items() if name in parameters and not isinstance(value, list)}
    required = {name: None for name, p in parameters.items() if p.default is p.empty and p.kind is not p.VAR_KEYWORD}
    parts = {**required, **settings, _SCHEDULER: scheduler, component: module}
    parts.pop("self", None)
    try:
        with _quiet():
            pipeline = pipeline_type(**{name: part for name, part in parts.items() if name in parameters})
    except Exception:
        # A constructor that needs its other components has changed the scheduler before it failed, or not at all.
        return scheduler
    return getattr(pipeline, _SCHEDULER, scheduler)
