"""``dipgo-deploy env``: the versions and the machine, for a bug report or beside a measurement."""

from __future__ import annotations

from typing import Any

from dipgo_deploy.cli.options import Json
from dipgo_deploy.cli.output import emit, result


def env(as_json: Json = False) -> None:
    """Print versions, platform, cores and execution providers."""
    from dipgo_deploy.runtime.environment import environment

    found = environment()
    if as_json:
        emit(found)
        return
    lines = [f"{name:<14} {_text(value)}" for name, value in found.items() if name != "packages"]
    lines += [f"{name:<14} {version}" for name, version in found["packages"].items()]
    result("\n".join(lines))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "unknown" if value is None else str(value)
