"""``dipgo-deploy doctor`` and ``env``: what this machine can do, and its versions for a bug report or a measurement."""

from __future__ import annotations

from typing import Any

from dipgo_deploy.cli.options import Json
from dipgo_deploy.cli.terminal import emit, result


def doctor(as_json: Json = False) -> None:
    """Print which backends work here, and what to install for the others. A missing backend is not an error."""
    from dataclasses import asdict

    from dipgo_deploy.runtime.environment import capabilities, execution_providers
    from dipgo_deploy.trt.driver import probe_cuda

    entries = capabilities(probe_cuda(), execution_providers())
    if as_json:
        emit({"capabilities": [asdict(capability) for capability in entries]})
        return
    for capability in entries:
        result(f"{capability.status:<8} {capability.name:<17} {capability.reason}")
        if capability.remedy:
            result(f"{'':<26} → {capability.remedy}")


def env(as_json: Json = False) -> None:
    """Print versions, platform, cores and execution providers."""
    from dipgo_deploy.runtime.environment import environment

    values = environment()
    if as_json:
        emit(values)
        return
    lines = [f"{name:<14} {_text(value)}" for name, value in values.items() if name != "packages"]
    lines += [f"{name:<14} {version}" for name, version in values["packages"].items()]
    result("\n".join(lines))


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "unknown" if value is None else str(value)
