"""Pipelines by the name they have on the model hub, fetched by diffusers into the cache that it shares with others."""

from __future__ import annotations

import os
import re
from pathlib import Path
from textwrap import shorten

from dipgo_deploy.core.errors import MissingError
from dipgo_deploy.models.quiet import quiet_diffusers

__all__ = ["fetch", "is_hub_name"]

_CONFIGS = ("model_index.json", "config.json", "*/config.json", "*/scheduler_config.json")
"""Files that say what a model is, without a weight."""

_TRUE = ("1", "on", "yes", "true")


def is_hub_name(source: str) -> bool:
    """Whether ``source`` reads as ``owner/name``."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source) is not None


def fetch(name: str, *, revision: str | None = None, variant: str | None = None, configs_only: bool = False) -> Path:
    """Folder of the pipeline ``name`` at ``revision`` in the hub's cache, downloaded first where it is not there.

    With HF_HUB_OFFLINE set nothing is asked of the network. Only safetensors are fetched, with ``configs_only`` no
    weights at all, and no code is run.
    Raises MissingError where the model is neither in the cache nor to be had.
    """
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in _TRUE
    try:
        with quiet_diffusers():
            folder = _configs(name, revision, offline) if configs_only else _whole(name, revision, variant, offline)
    except Exception as error:
        line = shorten(str(error) or type(error).__name__, 120)
        where = "in the hub's cache, and HF_HUB_OFFLINE is set" if offline else f"here or on the hub ({line})"
        at = f" at {revision}" if revision else ""
        raise MissingError(
            f"there is no model {name}{at} {where}: check the name, fetch it where there is a network, or give a folder"
        ) from None
    return Path(folder)


def _whole(name: str, revision: str | None, variant: str | None, offline: bool) -> str:
    import diffusers  # noqa: TID251 - the home of diffusers

    folder: str = diffusers.DiffusionPipeline.download(
        name, revision=revision, variant=variant, use_safetensors=True, local_files_only=offline
    )
    return folder


def _configs(name: str, revision: str | None, offline: bool) -> str:
    from huggingface_hub import snapshot_download

    return snapshot_download(name, revision=revision, allow_patterns=[*_CONFIGS], local_files_only=offline)
