from __future__ import annotations

import json
from pathlib import Path

import pytest

from dipgo_deploy.bench import QUICK, load_report
from dipgo_deploy.cli.main import run


def test_a_quick_bench_is_labelled_and_explicit_sizes_win(
    bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--images", "2", "--repeats", "2", "--converged-images", "1", "--converged-calls", "12"]
    files = ["--out", str(tmp_path / "tiny.json"), "--plot", str(tmp_path / "tiny.svg")]
    assert run(["bench", str(bundle_folder), "--quick", *few, *files, "--threads", "1", "--json"]) == 0
    output = capsys.readouterr()
    assert "measuring …" in output.err
    document = json.loads(output.out.splitlines()[-1])
    settings = document["environment"]["bench"]
    assert settings["quick"] and settings["threads"] == 1 and settings["backend"] == "onnxruntime"
    assert (settings["images"], settings["repeats"], settings["converged_calls"]) == (2, 2, 12)
    assert settings["tuning_images"] == QUICK.tuning_images
    label = "Quick bench, not for publication: 2 images, 2 rounds, converged run of 12 calls."
    assert label in output.out
    assert load_report(tmp_path / "tiny.json").environment["bench"]["quick"]
    assert "tiny: UNet2DConditionModel" in (tmp_path / "tiny.svg").read_text()
