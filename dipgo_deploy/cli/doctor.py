"""``dipgo-deploy doctor``: what this machine can do, and for each thing it cannot, the line that would change it."""

from __future__ import annotations

from dipgo_deploy.cli.options import Json
from dipgo_deploy.cli.output import emit, result


def doctor(as_json: Json = False) -> None:
    """Say which backends work here and what the others lack; a missing backend is no error."""
    from dataclasses import asdict

    from dipgo_deploy.runtime.devices import capabilities, execution_providers
    from dipgo_deploy.trt.driver import probe_cuda

    found = capabilities(probe_cuda(), execution_providers())
    if as_json:
        emit({"capabilities": [asdict(capability) for capability in found]})
        return
    for capability in found:
        result(f"{capability.status:<8} {capability.name:<17} {capability.reason}")
        if capability.remedy:
            result(f"{'':<26} → {capability.remedy}")
