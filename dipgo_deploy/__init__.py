"""Prune, cut and run diffusers denoisers as straight-line programs.

The public verbs are ``load_model``, ``trace``, ``search``, ``lower``, ``export``, ``load_bundle``, ``generate``, ``verify``
and ``load_pipeline``; ``DeployedDenoiser`` takes a denoiser's place in a diffusers pipeline.
Each is imported on first use, so that ``import dipgo_deploy`` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_VERBS = {
    "load_model": "dipgo_deploy.models",
    "trace": "dipgo_deploy.graphs",
    "lower": "dipgo_deploy.lowering",
    "export": "dipgo_deploy.graphs",
    "load_bundle": "dipgo_deploy.runtime",
    "generate": "dipgo_deploy.runtime",
    "verify": "dipgo_deploy.runtime",
    "load_pipeline": "dipgo_deploy.runtime.dropin",
    "DeployedDenoiser": "dipgo_deploy.runtime.dropin",
}

__all__ = ["__version__", "search", *_VERBS]


def __getattr__(name: str) -> Any:
    """Import a public name from its package the first time it is used."""
    if name == "search":
        # The package itself can be called. Its name is bound here by any import of its modules.
        return import_module("dipgo_deploy.search")
    if name not in _VERBS:
        raise AttributeError(f"module 'dipgo_deploy' has no attribute {name!r}")
    return getattr(import_module(_VERBS[name]), name)
