"""Verification: fast backends compared with slow backends call by call, and the schedule with the full run.

The package is also a verb: ``dipgo_deploy.verify(bundle)`` is ``verify_bundle(bundle)``.
"""

from __future__ import annotations

from dipgo_deploy.core.callable_package import make_callable
from dipgo_deploy.verify.against import BundleComparison, compare_bundles
from dipgo_deploy.verify.options import VerifyOptions
from dipgo_deploy.verify.verify import VerifyReport, verify_bundle

__all__ = ["BundleComparison", "VerifyOptions", "VerifyReport", "compare_bundles", "verify_bundle"]

make_callable(__name__, verify_bundle)
