from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dipgo_deploy.cli.main import run
from dipgo_deploy.cli.options import batch_range, byte_count
from dipgo_deploy.core.contract import BatchRange
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.trt.driver import DRIVER_VARIABLE
from dipgo_deploy.trt.target import is_installed
from tests.cli.refusal import refused
from tests.models.families import tiny
from tests.runtime.bundles import few_graphs
from tests.trt.fake_driver import compiled_driver

needs_rtx = pytest.mark.skipif(not is_installed("tensorrt_rtx"), reason="needs TensorRT-RTX: pip install '.[rtx]'")
QUICK = ["--target", "rtx", "--gpu", "sm89", "--batch", "1-2-4", "--check-images", 1, "--check-steps", 1]


@pytest.fixture
def no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver library that is there and reports no device."""
    monkeypatch.setenv(DRIVER_VARIABLE, str(compiled_driver(tmp_path)))


@needs_rtx
def test_a_bundle_is_built_from_the_command_line_and_kept_the_next_time(tmp_path, capsys, no_device) -> None:
    folder = few_graphs(tiny("dit"), tmp_path / "bundle", shares=(1, 0)).folder
    arguments = ["build-engine", str(folder), "--fp16", *map(str, QUICK)]
    assert run([*arguments, "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "half-precision graphs would be made first" in text and "not known yet" in text and "≈" in text
    assert run(arguments) == 0
    text = capsys.readouterr().out
    assert "float16: deviates by" in text and "subnet_00" in text
    assert "1 engine (1 built), " in text or "1 engine (1 copied), " in text
    assert run([*arguments, "--dry-run", "--json"]) == 0
    dry = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert dry["counts"] == {"up to date": 1, "copied": 0, "built": 0} and not dry["searches"]
    assert run([*arguments, "--json"]) == 0
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["counts"] == {"up to date": 1, "copied": 0, "built": 0}
    assert [engine["engine_bytes"] for engine in dry["engines"]] == [document["engines"][0]["bytes"]]
    assert document["engines"][0]["io"]["prediction"]["dtype"] == "float16"
    assert document["precision"]["dtype"] == "float16"
    assert run(["show", str(folder)]) == 0


def test_with_a_driver_that_reports_no_device_each_command_says_what_to_do(tmp_path, capsys, no_device, monkeypatch):
    refused(["build-engine", tmp_path, "--target", "tensorrt"], "tensorrt", capsys, code=5)
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "the driver reports 0 devices" in text and "run on a machine with an NVIDIA GPU" in text
    assert run(["env"]) == 0
    assert "gpus           none" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "tensorrt", sys)  # installed, as far as anybody asks before the driver
    words = "builds only on an NVIDIA GPU (the driver reports 0 devices): run on a machine with a GPU"
    refused(["build-engine", tmp_path, "--target", "tensorrt"], words, capsys, code=5)


@needs_rtx
@pytest.mark.parametrize(
    ("options", "words", "code"),
    [
        (["--gpu", "sm90"], "builds for sm75, sm80, sm86, sm89, sm120, sm121, not for sm90: choose among these", 2),
        ([], "no GPU to build for (the driver reports 0 devices): set --gpu to some of sm75", 5),
        (["--gpu", "sm89", "--fp16", "--bf16"], "--fp16 and --bf16 exclude each other", 2),
        (["--gpu", "sm89", "--batch", "4-1"], "give MIN-OPT-MAX", 2),
        (["--gpu", "sm89", "--workspace", "much"], "'much' is not a size", 2),
        (["--gpu", "sm89", "--level", "9"], "--level", 2),
        (["--gpu", "sm89", "--tolerance", "0"], "tolerance must lie between 0 and 1, got 0.0", 2),
        (["--gpu", "sm89"], "not a bundle", 3),
        (["--gpu", ""], "--gpu '' contains an empty name: give architectures separated by commas", 2),
        (["--gpu", "SM89,,sm86"], "contains an empty name", 2),
        (
            ["--gpu", "SM89", "--refit"],
            "refit and strip need an NVIDIA GPU at build time (the driver reports 0 devices)",
            5,
        ),
        (["--gpu", "SM89", "--strip"], "refit and strip need an NVIDIA GPU at build time", 5),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(tmp_path, capsys, no_device, options, words, code):
    refused(["build-engine", tmp_path, "--target", "rtx", *options], words, capsys, code=code)


@pytest.mark.parametrize(("text", "count"), [("8G", 8 << 30), ("1.5k", 1536), ("512MiB", 512 << 20), ("7", 7)])
def test_sizes_are_read(text, count):
    assert byte_count(text) == count


@pytest.mark.parametrize("text", ["", "G", "-1", "0", "8X", "nan"])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(UsageError, match="is not a size: give a number"):
        byte_count(text)


def test_ranges_of_images_are_read():
    assert (batch_range("1-4-8"), batch_range("2")) == (BatchRange(1, 4, 8), BatchRange(2, 2, 2))
    for text in ("", "1-2", "a-b-c", "0-1-2", "1-2-3-4"):
        with pytest.raises(UsageError, match="is not a range of images"):
            batch_range(text)
