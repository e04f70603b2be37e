"""``dipgo-deploy verify``: do the backends agree, and how far is the schedule from the full run."""

from __future__ import annotations

from dipgo_deploy.cli.options import BundleFolder, Json
from dipgo_deploy.cli.output import emit, result, working
from dipgo_deploy.core.errors import GateError


def verify(bundle: BundleFolder, as_json: Json = False) -> None:
    """Verify BUNDLE: backends against each other call by call, and the schedule against the full run."""
    from dataclasses import asdict

    from dipgo_deploy.cli.views import verify_view
    from dipgo_deploy.runtime import VerifyOptions, load_bundle
    from dipgo_deploy.runtime import verify as verify_bundle

    with working(f"verifying {bundle}"):
        report = verify_bundle(load_bundle(bundle), VerifyOptions())
    if as_json:
        emit({"passed": report.passed, **asdict(report)})
    else:
        result(verify_view(report))
    if not report.passed:
        raise GateError(report.failure)
