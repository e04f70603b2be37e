"""Traces in caches are used again while TRACE_VERSION stays, so a change of traces must raise it.

With DIPGO_TEST_CACHE the traces themselves may be old ones: run this test without that variable.
"""

from __future__ import annotations

import json

import pytest

from dipgo_deploy.core.contract import installed_versions
from dipgo_deploy.graphs.trace import TRACE_VERSION
from tests.graphs.record_traces import LIBRARIES, MODULE, RECORD, complaint, trace_digest
from tests.graphs.surgery import TRACES

VERSIONS = installed_versions(LIBRARIES)


def test_a_change_of_traces_raises_the_trace_version(traced) -> None:
    record = json.loads(RECORD.read_text())
    if record["versions"] != VERSIONS:
        pytest.skip(f"recorded with {record['versions']}, installed are {VERSIONS}: run python -m {MODULE}")
    digests = {f"{name}/{granularity}": trace_digest(traced(name, granularity)) for name, granularity in TRACES}
    assert (complaint(record, VERSIONS, digests, TRACE_VERSION) or "") == ""


def test_the_complaint_says_what_to_do() -> None:
    record = {"trace_version": 3, "versions": VERSIONS, "digests": {"a/stage": "1", "b/stage": "2"}}
    assert complaint(record, VERSIONS, {"a/stage": "1", "b/stage": "2"}, 3) is None
    changed = complaint(record, VERSIONS, {"a/stage": "1", "b/stage": "9"}, 3)
    assert changed is not None and "traces of b/stage changed" in changed and "raise it in" in changed
    raised = complaint(record, VERSIONS, {"a/stage": "1", "b/stage": "9"}, 4)
    assert raised is not None and f"run python -m {MODULE}" in raised
