"""``dipgo-deploy doctor``: what this machine can do, and for each thing it cannot, the line that would change it.

``dipgo-deploy env``: the versions and the machine, for a bug report or beside a measurement.
"""

from __future__ import annotations

from typing import Any

from dipgo_deploy.cli.options import Json
from dipgo_deploy.cli.terminal import emit, result


def doctor(as_json: Json = False) -> None:
    """Say which backends work here and what the others lack; a missing backend is no error."""
    from dataclasses import asdict

    from dipgo_deploy.runtime.environment import capabilities, execution_providers
    from dipgo_deploy.trt.driver import probe_cuda

    found = capabilities(probe_cuda(), execution_providers())
    if as_json:
        emit({"capabilities": [asdict(capability) for capability in found]})
        return
    for capability in found:
        result(f"{capability.status:<8} {capability.name:<17} {capability.reason}")
        if capability.remedy:
            result(f"{'':<26} → {capability.remedy}")


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
