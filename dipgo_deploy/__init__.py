"""Prune, cut and run diffusers denoisers as straight-line programs.

The public verbs are ``load_model``, ``trace``, ``search``, ``lower``, ``export``, ``load_bundle``, ``generate``,
``verify`` and ``load_pipeline``. ``DeployedDenoiser`` takes a denoiser's place in a diffusers pipeline.
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
    "export": "dipgo_deploy.bundle",
    "load_bundle": "dipgo_deploy.bundle",
    "open_session": "dipgo_deploy.runtime",
    "generate": "dipgo_deploy.runtime",
    "RunOptions": "dipgo_deploy.core.run_options",
    "finish": "dipgo_deploy.core.progress",
    "load_pipeline": "dipgo_deploy.pipeline",
    "DeployedDenoiser": "dipgo_deploy.pipeline",
}
"""Public names and the package that each is imported from."""

_PACKAGES = ("search", "verify")
"""Packages that are verbs too: they can be called (core/callable_package.py)."""

__all__ = ["__version__", *_VERBS, *_PACKAGES]


def __getattr__(name: str) -> Any:
    """Import a public name from its package the first time it is used."""
    if name in _PACKAGES:
        return import_module(f"dipgo_deploy.{name}")
    if name not in _VERBS:
        raise AttributeError(f"module 'dipgo_deploy' has no attribute {name!r}")
    return getattr(import_module(_VERBS[name]), name)
