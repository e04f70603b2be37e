"""Verification: fast paths compared with slow ones, call by call, and a schedule compared with the full run."""

from __future__ import annotations

from dipgo_deploy.core.callable_package import make_callable
from dipgo_deploy.verify.options import VerifyOptions
from dipgo_deploy.verify.verify import VerifyReport, verify_bundle

__all__ = ["VerifyOptions", "VerifyReport", "verify_bundle"]

make_callable(__name__, verify_bundle)
