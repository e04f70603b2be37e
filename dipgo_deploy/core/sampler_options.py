"""Options of a sampler as people type them: ``clip_sample=false``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dipgo_deploy.core.errors import UsageError

__all__ = ["parse_sampler_options"]

_PYTHON_WORDS = {"True": True, "False": False, "None": None}


def parse_sampler_options(texts: Sequence[str]) -> dict[str, Any]:
    """Parse options of a diffusers scheduler.

    Args:
        texts: each ``KEY=VALUE``. A value is JSON, or else a plain string.

    Returns:
        Values by key.

    Raises:
        UsageError: a text without ``=`` or key, or a key that occurs twice.
    """
    options: dict[str, Any] = {}
    for text in texts:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not (equals and key and value):
            raise UsageError(f"{text!r} is not an option of a sampler: give KEY=VALUE, such as clip_sample=false")
        if key in options:
            raise UsageError(f"the sampler's option '{key}' is given twice: leave one out")
        options[key] = _value(value)
    return options


def _value(text: str) -> Any:
    if text in _PYTHON_WORDS:
        return _PYTHON_WORDS[text]
    try:
        return json.loads(text)
    except ValueError:
        return text
