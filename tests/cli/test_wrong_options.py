"""Options that make no sense, targets that cannot be written, and environments that lack something."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dipgo_deploy.cli.main import run
from tests.cli.refusal import refused
from tests.models.pipelines import text_pipeline

NAN = "nan"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ratio", 1.5], "ratio 1.5"),
        (["--ratio", NAN], "ratio nan"),
        (["--ratio", -0.5], "ratio -0.5"),
        (["--steps", 0], "--steps"),
        (["--steps", 100000], "the number of sampler steps must lie between 1 and 1000, got 100000"),
        (["--sampler", "abacus"], "'--sampler': 'abacus' is not one of 'ddim', 'ddpm'"),
        (["--sampler", "flow-euler"], "choose another sampler"),
        (["--method", "guess"], "method 'guess'"),
        (["--interval", 0], "interval must be at least 1"),
        (["--method", "random", "--interval", 2], "interval does not belong"),
        (["--method", "deepcache", "--depth", 99], "depth 99"),
        (["--calls", 3, "--interval", 2], "give one of them"),
        (["--calls", 7], "calls must be at most 6"),
        (["--method", "random", "--seed", -1], "seed must be at least 0"),
        (["--method", "uniform", "--candidates", 3], "candidates does not belong"),
        (["--method", "best-random", "--candidates", 0], "candidates must be at least 1"),
        (["--method", "evolutionary", "--population", 2], "population must be at least 4"),
        (["--method", "evolutionary", "--trajectories", 0], "trajectories must be at least 1"),
        (["--method", "best-random", "--images", 0], "images must be at least 1"),
        (
            ["--method", "uniform", "--iterations", 3],
            "iterations does not belong to method uniform: leave it out, or choose learned or dipgo",
        ),
        (["--method", "uniform", "--preset", "paper"], "preset does not belong to method uniform"),
        (["--method", "random", "--from-pruner", "p.pruner"], "--from-pruner does not belong to method random"),
        (["--method", "dipgo", "--preset", "wrong"], "'--preset': 'wrong' is not one of 'default', 'paper'"),
        (["--method", "dipgo", "--iterations", 0], "iterations must be at least 1"),
        (["--method", "dipgo", "--polish", -1], "polish must be at least 0"),
        (["--method", "dipgo", "--order", "best"], "--order"),
        (["--method", "dipgo", "--pruner", "a", "--from-pruner", "b"], "give one of them"),
        (["--method", "dipgo", "--from-pruner", "b", "--iterations", 3], "iterations belongs to training"),
        (["--method", "dipgo", "--from-pruner", "b", "--preset", "paper"], "preset belongs to training"),
        (
            ["--method", "dipgo", "--from-pruner", "b", "--seed", 0],
            "seed belongs to training, but --from-pruner names a trained pruner",
        ),
        (["--method", "dipgo", "--from-pruner", "b", "--guidance-scale", 2], "--guidance-scale belongs to training"),
        (["--method", "dipgo", "--from-pruner", "b", "--images", 4], "give polish, or leave images out"),
        (["--method", "dipgo", "--out", "s.pruner"], "s.pruner would be the schedule and the pruner"),
        (["--method", "dipgo", "--out", "s", "--from-pruner", "s"], "s would be the schedule and the pruner"),
        (["--method", "uniform", "--conditions", __file__], "is for methods that run the model, not for uniform"),
        (["--method", "dipgo", "--conditions", __file__, "--from-pruner", "p"], "belongs to training"),
        (["--picture", "p.gif"], "ends in neither .png nor .svg"),
        (["--max-graphs", 0], "--max-graphs"),
        (["--blocks", "down_blocks.*,"], "empty pattern"),
        (["--blocks", "no_such.*"], "matches no submodule"),
        (["--blocks", "down_blocks.*,down_blocks.0.resnets.0"], "do not nest"),
    ],
)
def test_search(options, words, tmp_path, capsys):
    arguments = ["search", "digits-unet", "--out", tmp_path / "s.json"]
    refused([*arguments, *([] if "--steps" in options else ["--steps", 6]), *options], words, capsys, 2)


@pytest.mark.parametrize("model", ["digits-unet", "digits-dit"])
@pytest.mark.parametrize("text", ["a cat", "3\na cat", "-1"])
def test_prompts_for_a_model_that_takes_class_numbers(model, text, tmp_path, capsys):
    (tmp_path / "c.txt").write_text(text)
    asked = ["--method", "best-random", "--conditions", tmp_path / "c.txt", "--out", tmp_path / "s.json"]
    refused(["search", model, *asked], "conditioned on class numbers, not on prompts: give numbers", capsys, 2)


@pytest.mark.parametrize("command", ["trace", "search"])
def test_a_granularity_that_the_model_lacks(command, tmp_path, capsys):
    arguments = [command, "digits-dit", "--granularity", "layer", "--out", tmp_path / "out"]
    refused(arguments, "has no granularity 'layer': choose stage or branch", capsys, 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--blocks", ""], "empty pattern"), (["--blocks", "zzz"], "matches no submodule"), (["--granularity", "x"], "x")],
)
def test_trace(options, words, tmp_path, capsys):
    refused(["trace", "digits-unet", "--out", tmp_path / "t", *options], words, capsys, 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--count", 0], "--count"),
        (["--seed", -1], "--seed"),
        (["--class", 99], "class labels must lie between 0 and 9"),
        (["--class", -1], "class labels must lie between 0 and 9"),
        (["--class", "seven"], "--class"),
        (["--guidance-scale", NAN], "--guidance-scale"),
        (["--guidance-scale", "inf"], "guidance-scale must be finite, got inf"),
        (["--backend", "abacus"], "--backend"),
    ],
)
def test_generate(options, words, bundle_folder, tmp_path, capsys):
    refused(["generate", bundle_folder, "--out", tmp_path / "g.png", *options], words, capsys, 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--images", 0], "--images"),
        (["--images", 65], "batch must be 1 to 64"),
        (["--seed", -1], "--seed"),
        (["--guidance-scale", NAN], "--guidance-scale"),
        (["--tolerance", NAN], "--tolerance must be a positive number, got nan"),
        (["--tolerance", -1], "--tolerance must be a positive number, got -1"),
        (["--tolerance", 0], "--tolerance must be a positive number, got 0"),
        (["--min-psnr", NAN], "--min-psnr must be a positive number, got nan"),
        (["--once", "--device", "cuda"], "--once compares single calls on the CPU: leave"),
    ],
)
def test_verify(options, words, bundle_folder, capsys):
    refused(["verify", bundle_folder, *options], words, capsys, 2)


@pytest.mark.parametrize(
    ("options", "words"), [(["--min-psnr", 500], "--min-psnr is 500"), (["--tolerance", 1e-12], "past tolerance")]
)
def test_a_gate_that_is_not_met(options, words, bundle_folder, capsys):
    refused(["verify", bundle_folder, "--images", 1, *options], words, capsys, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch", 0], "--batch"),
        (["--batch", 65], "batch must be 1 to 64"),
        (["--repeats", 1], "--repeats"),
        (["--images", 0], "--images"),
        (["--threads", 0], "--threads"),
        (["--guidance-scale", NAN], "--guidance-scale"),
        (["--device", "tpu"], "--device"),
        (["--plot", "quality.gif"], "a picture must end in .png or .svg, got quality.gif"),
        (["--plot"], "--plot"),
        (["--with-schedule"], "--with-schedule"),
    ],
)
def test_bench(options, words, bundle_folder, tmp_path, capsys):
    refused(["bench", bundle_folder, "--out", tmp_path / "b.json", *options], words, capsys, 2)


def test_a_bench_of_nothing(capsys):
    refused(["bench"], "Missing argument 'BUNDLE...'", capsys, 2)


def test_a_bench_of_equal_names(bundle_folder, tmp_path, capsys):
    refused(["bench", bundle_folder, bundle_folder], "2 schedules are called 'bundle': rename", capsys, 2)
    schedule = shutil.copyfile(bundle_folder / "schedule.json", tmp_path / "full.json")
    words = "the name 'full' is reserved for the full run: rename"
    refused(["bench", bundle_folder, "--with-schedule", schedule], words, capsys, 2)


@pytest.mark.parametrize("option", ["--plot", "--out"])
def test_a_bench_asks_where_it_may_write_before_it_works(option, bundle_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    refused(["bench", bundle_folder, option, tmp_path / "file" / "x.png"], "is not a folder: choose another", capsys)
    (tmp_path / "x.png").mkdir()
    refused(["bench", bundle_folder, option, tmp_path / "x.png"], "choose another name", capsys)


@pytest.mark.parametrize("command", ["env", "doctor", "demo"])
def test_arguments_that_a_command_does_not_take(command, capsys):
    refused([command, "surprise"], "surprise", capsys, 2)


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--max-graphs", 0], "--max-graphs"), (["--layout", "heap"], "--layout"), (["--fp17"], "--fp17")],
)
def test_export(options, words, bundle_folder, tmp_path, capsys):
    arguments = ["export", "digits-unet", "--schedule", bundle_folder / "schedule.json", "--out", tmp_path / "b"]
    refused([*arguments, *options], words, capsys, 2)


WRITERS = ("trace", "search", "export", "show", "generate", "bench", "demo")


def writing(command: str, out: Path, bundle: Path) -> list[object]:
    """A command line that would succeed, if only ``out`` could be written."""
    arguments: dict[str, list[object]] = {
        "trace": ["digits-unet"],
        "search": ["digits-unet", "--steps", 6, "--ratio", 0.5],
        "export": ["digits-unet", "--schedule", bundle / "schedule.json"],
        "show": [bundle / "schedule.json"],
        "generate": [bundle, "--class", 1, "--count", 1],
        "bench": [bundle],
        "demo": [],
    }
    return [command, *arguments[command], "--out", out]


@pytest.mark.parametrize("command", WRITERS)
def test_a_target_below_a_file(command, bundle_folder, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "out.png"
    refused(writing(command, out, bundle_folder), "is not a folder: choose another place", capsys)
    assert (tmp_path / "file").read_text() == "mine"


# For generate, a folder is a place for one file per image.
@pytest.mark.parametrize("command", [command for command in WRITERS if command != "generate"])
def test_a_target_of_the_other_sort(command, bundle_folder, tmp_path, capsys):
    out = tmp_path / "out.png"
    if command in ("trace", "export", "demo"):
        out.write_text("mine")
    else:
        out.mkdir()
    refused(writing(command, out, bundle_folder), "choose another name", capsys)


@pytest.mark.parametrize("command", ["trace", "export"])
def test_a_folder_that_holds_something_else(command, bundle_folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    refused(writing(command, tmp_path / "out", bundle_folder), "choose another", capsys)


@pytest.mark.parametrize("command", ["search", "export", "show", "generate"])
def test_a_full_disk(command, bundle_folder, traced, tmp_path, monkeypatch, capsys):
    traced("digits-unet", "stage")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(writing(command, tmp_path / "out.png", bundle_folder), "No space left on device", capsys)


def test_an_export_whose_copies_fail_leaves_nothing(bundle_folder, traced, tmp_path, monkeypatch, capsys):
    traced("digits-unet", "stage")

    def forbidden(source: object, target: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target))

    monkeypatch.setattr("shutil.copyfile", forbidden)
    refused(writing("export", tmp_path / "out", bundle_folder), "Permission denied: check path", capsys)


@pytest.mark.parametrize("command", ["generate", "verify", "bench"])
def test_without_onnxruntime(command, bundle_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "dipgo_deploy.runtime.onnxruntime_backend", raising=False)
    arguments = [command, bundle_folder] if command == "verify" else writing(command, tmp_path / "x.png", bundle_folder)
    refused(arguments, "pip install 'dipgo-deploy[cpu]'", capsys, 5)


def test_prompts_without_transformers(tmp_path, monkeypatch, capsys):
    pytest.importorskip("transformers", reason="the pipeline's text encoder is one of transformers")
    model = text_pipeline(tmp_path / "model")
    (tmp_path / "c.txt").write_text("a cat")
    # diffusers imports its pipelines once: without transformers it would fail first, in another way than if absent.
    assert run(["search", str(model), "--steps", "2", "--out", str(tmp_path / "s.json")]) == 0
    (tmp_path / "s.json").unlink()
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "transformers", None)
    asked = ["--method", "best-random", "--conditions", tmp_path / "c.txt", "--out", tmp_path / "s.json"]
    refused(["search", model, *asked], "transformers is not installed: pip install transformers", capsys, 5)


def test_without_a_gpu(bundle_folder, monkeypatch, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(
        ["bench", bundle_folder, "--device", "cuda"],
        "device cuda was requested, but PyTorch finds no CUDA GPU here",
        capsys,
        5,
    )


def test_an_interrupted_export_leaves_nothing(bundle_folder, traced, tmp_path, monkeypatch, capsys):
    traced("digits-unet", "stage")

    def interrupt(source: object, target: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copyfile", interrupt)
    assert run([str(word) for word in writing("export", tmp_path / "out", bundle_folder)]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "error: interrupted: run the same command again"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["verify", "nowhere"], 3),
        (["show", "nowhere.json"], 3),
        (["search", "nowhere"], 3),
        (["search", "digits-unet", "--ratio", "1.5"], 2),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_as_a_process(arguments, code, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "dipgo_deploy.cli.main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment)
    lines = [line for line in done.stderr.splitlines() if not line.endswith(" …")]
    assert (done.returncode, done.stdout, len(lines)) == (code, "", 1)
    assert lines[0].startswith("error: ") and list(tmp_path.iterdir()) == []
