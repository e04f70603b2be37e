"""Pipelines by their name on the model hub. diffusers downloads them into the cache that other programs share."""

from __future__ import annotations

import os
import re
from pathlib import Path
from textwrap import shorten

from dipgo_deploy.core.errors import MissingError, first_line
from dipgo_deploy.models.suppress_logging import suppress_diffusers_logging

__all__ = ["fetch", "is_hub_name"]

_CONFIGS = ("model_index.json", "config.json", "*/config.json", "*/scheduler_config.json")
"""Files that describe a model without its weights."""

_TRUE = ("1", "on", "yes", "true")
"""Values of HF_HUB_OFFLINE that huggingface_hub treats as set."""


def is_hub_name(source: str) -> bool:
    """Whether ``source`` has the form ``owner/name``."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source) is not None


def fetch(name: str, *, revision: str | None = None, variant: str | None = None, configs_only: bool = False) -> Path:
    """Find a pipeline in the hub's cache, and download it first if it is not there.

    With HF_HUB_OFFLINE set the network is not used. Only safetensors are downloaded, and no remote code is run.

    Args:
        name: ``owner/name``.
        revision: branch, tag or commit on the hub.
        variant: variant of the weight files, such as ``fp16``.
        configs_only: download no weights.

    Returns:
        The pipeline's folder in the cache.

    Raises:
        MissingError: the model is neither in the cache nor on the hub, or the hub cannot be reached.
    """
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE
    try:
        with suppress_diffusers_logging():
            if configs_only:
                return Path(_download_configs(name, revision, offline))
            return Path(_download_pipeline(name, revision, variant, offline))
    except Exception as error:
        line = shorten(first_line(error), 120)
        place = "in the hub's cache, and HF_HUB_OFFLINE is set" if offline else f"here or on the hub ({line})"
        at = f" at {revision}" if revision else ""
        raise MissingError(
            f"there is no model {name}{at} {place}: check the name, fetch it where there is a network, or give a folder"
        ) from None


def _download_pipeline(name: str, revision: str | None, variant: str | None, offline: bool) -> str:
    import diffusers  # noqa: TID251 - the home of diffusers

    folder: str = diffusers.DiffusionPipeline.download(
        name, revision=revision, variant=variant, use_safetensors=True, local_files_only=offline
    )
    return folder


def _download_configs(name: str, revision: str | None, offline: bool) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(name, revision=revision, allow_patterns=[*_CONFIGS], local_files_only=offline)
