"""Bundles: written from a schedule, loaded, and described. Sessions are opened by the package ``runtime``."""

from __future__ import annotations

from dipgo_deploy.bundle.bundle import Bundle, CompiledProgram
from dipgo_deploy.bundle.load import load_bundle
from dipgo_deploy.bundle.write import ExportOptions, export

__all__ = ["Bundle", "CompiledProgram", "ExportOptions", "export", "load_bundle"]
