"""What ``verify`` prints: every deviation next to its tolerance, and two verdicts."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dipgo_deploy.cli.verify_view import once_view, verify_view
from dipgo_deploy.verify import VerifyReport
from dipgo_deploy.verify.deviation import Deviation
from dipgo_deploy.verify.graph_check import GraphCheck
from dipgo_deploy.verify.rung import make_rung

NAMES = ("worst", "p10", "p50")


def text_of(view: object) -> str:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(view)
    return console.export_text()


def report(local: float = 1e-5, free: float = 1e-4, psnr: float = 35.5, gate: float | None = None) -> VerifyReport:
    rung = make_rung("onnxruntime subnets = torch", free, 1e-3, [Deviation("mid", 3, local, 1e-4)])
    return VerifyReport((make_rung("all gates open", 0.0, 0.0), rung), dict.fromkeys(NAMES, psnr), "", gate)


@pytest.mark.parametrize(
    ("local", "free", "cells"),
    [
        (1e-5, 1e-4, ["1.0e-05 ≤ 1.0e-04", "1.0e-04 ≤ 1.0e-03", " ok"]),
        (2e-2, 1e-4, ["2.0e-02 > 1.0e-04", "1.0e-04 ≤ 1.0e-03", "FAILED: local"]),
        (1e-5, 2e-1, ["1.0e-05 ≤ 1.0e-04", "2.0e-01 > 1.0e-03", "FAILED: free-running"]),
        (2e-2, float("nan"), ["2.0e-02 > 1.0e-04", "nan > 1.0e-03", "FAILED: local and free-running"]),
    ],
)
def test_each_number_stands_next_to_its_tolerance_and_the_broken_number_is_named(local, free, cells) -> None:
    text = text_of(verify_view(report(local, free)))
    line = next(line for line in text.splitlines() if line.startswith("onnxruntime"))
    assert all(cell in line for cell in cells) and "mid, step 3" in line
    assert ("compiler: ok" in text) == cells[2].endswith("ok")


@pytest.mark.parametrize(
    ("psnr", "gate", "verdict"),
    [
        (7.2, None, "median 7.2 dB, p10 7.2 dB, worst 7.2 dB; below 20 dB, images differ visibly; not judged, no gate"),
        (35.5, None, "median 35.5 dB, p10 35.5 dB, worst 35.5 dB; not judged, no gate is set: --min-psnr"),
        (35.5, 30.0, "schedule: ok, near the full run: PSNR to the full run median 35.5 dB"),
        (35.5, 40.0, "schedule: FAILED, not near the full run: PSNR to the full run median 35.5 dB"),
        (float("nan"), 40.0, "schedule: FAILED"),
        (120.0, None, "PSNR to the full run median identical, p10 identical, worst identical"),
    ],
)
def test_the_schedule_has_a_verdict_of_its_own(psnr, gate, verdict) -> None:
    text = text_of(verify_view(report(psnr=psnr, gate=gate)))
    assert verdict in text and "compiler: ok" in text and "verified" not in text


def test_the_document_holds_both_verdicts_and_the_tolerances() -> None:
    document = report(local=2e-2, gate=40.0).document()
    assert (document["compiled_equals_schedule"], document["near_full_run"]) == (False, False)
    rung = document["rungs"][1]
    assert rung["past"] == ("local",) and (rung["local"]["tolerance"], rung["free_tolerance"]) == (1e-4, 1e-3)
    assert report().document()["near_full_run"] is None


def test_first_calls_stand_next_to_the_tolerance() -> None:
    checks = [
        GraphCheck("subnet_00", 0, "prediction", 1e-5, 0.1, 0.2),
        GraphCheck("subnet_01", 4, "mid", 1e-2, 0.1, 0.2),
    ]
    good, bad = text_of(once_view(checks, 1e-4)).splitlines()[2:]
    assert "1.0e-05 ≤ 1.0e-04" in good and good.split()[-1] == "ok"
    assert "1.0e-02 > 1.0e-04" in bad and bad.split()[-1] == "FAILED"
