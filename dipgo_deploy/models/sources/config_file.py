"""JSON files of diffusers folders."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dipgo_deploy.core.errors import InputError

__all__ = ["read_config"]


def read_config(path: Path) -> dict[str, Any]:
    """Read a JSON file of a diffusers folder. Raises InputError if the file is damaged or holds no object."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): restore the diffusers folder") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} does not hold a JSON object: restore the diffusers folder")
    return config
