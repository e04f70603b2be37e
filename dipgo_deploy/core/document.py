"""Documents of other tools: files from elsewhere, checked before anything is made of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from dipgo_deploy.core.errors import InputError

__all__ = ["checked"]

T = TypeVar("T")


def checked(document: Mapping[str, Any], schema: type[T], tool: str) -> T:
    """``document`` as ``schema``, a dataclass or type that pydantic knows; InputError in one line where it is not."""
    try:
        return TypeAdapter(schema).validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])[:80] or "the document"
        found = json.dumps(first["input"])[:40]
        raise InputError(f"{tool}: {where}: {first['msg']}, found {found}: mend it") from None
