"""Models named on the command line: MODEL or --random-weights, from the search to a bundle that verifies."""

from __future__ import annotations

import inspect
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dipgo_deploy.cli import export, interchange, profile, search, trace
from dipgo_deploy.cli.main import run
from dipgo_deploy.cli.source import ModelSource
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.files import load_schedule
from tests.cli.refusal import refused
from tests.models.families import tiny


@pytest.fixture
def config(tmp_path):
    tiny("sd").module.save_config(tmp_path)
    return str(tmp_path / "config.json")


def test_one_model_is_named():
    with pytest.raises(UsageError, match="no model is named: give MODEL, or --random-weights CONFIG"):
        ModelSource()
    with pytest.raises(UsageError, match="MODEL is a and --random-weights b: give one of them"):
        ModelSource("a", "b")


@pytest.mark.parametrize(
    "command", [trace.trace, search.search, export.export, profile.profile, interchange.import_schedule]
)
def test_every_command_with_a_model_takes_all_its_options(command: Callable[..., None]):
    wanted = {"model", "random_weights", "variant", "revision", "config", "lora"}
    wanted |= set() if command is export.export else {"size"}  # a schedule brings it
    assert wanted <= inspect.signature(command).parameters.keys()


def test_random_weights_become_a_bundle_that_verifies(config, tmp_path, capsys):
    schedule, bundle = str(tmp_path / "s.json"), str(tmp_path / "bundle")
    model = ["--random-weights", config]
    assert run(["search", *model, "--steps", "4", "--ratio", "0.5", "--out", schedule]) == 0
    assert run(["export", *model, "--schedule", schedule, "--out", bundle]) == 0
    assert run(["verify", bundle, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["passed"] is True
    assert run(["verify", bundle, "--once"]) == 0
    assert "first calls, ONNX Runtime against PyTorch" in capsys.readouterr().out
    assert run(["verify", bundle, "--once", "--tolerance", "1e-12"]) == 4
    assert "1e-12 is allowed: the fast path is not the slow one" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--min-psnr", "30"], ["--guidance-scale", "2"], ["--device", "cuda"]])
def test_single_calls_have_no_trajectories_and_no_gpu(tmp_path, capsys, option):
    assert run(["verify", str(tmp_path), "--once", *option]) == 2
    assert "--once compares single calls on the CPU: leave" in capsys.readouterr().err


def test_trace_takes_random_weights_in_half_precision(tmp_path, capsys):
    tiny("dit").module.save_config(tmp_path)
    config = str(tmp_path / "config.json")
    assert run(["trace", "--random-weights", config, "--dtype", "float16", "--out", str(tmp_path / "t"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["macs"]["papers"] > 0
    assert json.loads((tmp_path / "t" / "blocks.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize("command", [["trace"], ["search"], ["trace", "digits-dit", "--random-weights", "sd15"]])
def test_no_model_or_two_are_a_usage_error(command, capsys):
    assert run(command) == 2
    assert "--random-weights" in capsys.readouterr().err


def test_shapes_alone_are_traced_searched_and_shown(config, tmp_path, capsys):
    meta = ["--random-weights", config, "--meta"]
    assert run(["trace", *meta, "--json"]) == 0
    folder = Path(json.loads(capsys.readouterr().out.splitlines()[-1])["folder"])
    shutil.copy(folder / "blocks.json", tmp_path)
    assert run(["show", str(tmp_path)]) == 0
    assert "stored" in capsys.readouterr().out
    schedule = str(tmp_path / "schedule.json")
    assert run(["search", *meta, "--steps", "6", "--ratio", "0.5", "--out", schedule, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["slot_bytes"] > 0 and summary["graphs"] >= 1
    assert run(["show", schedule]) == 0
    assert "batch 8: slots" in capsys.readouterr().out
    assert run(["search", *meta, "--method", "dipgo"]) == 2
    assert "dipgo runs the model, which was loaded without weights" in capsys.readouterr().err


def test_random_weights_that_do_not_fit_leave_shapes(config, monkeypatch, capsys):
    from dipgo_deploy.supernet import memory

    monkeypatch.setattr(memory, "free_host_bytes", lambda: 1000)
    assert not ModelSource(random_weights=config).load().has_weights
    assert "KiB are free: only shapes are traced, nothing can run" in capsys.readouterr().err
    monkeypatch.setattr(memory, "free_host_bytes", lambda: 1 << 40)
    assert ModelSource(random_weights=config).load().has_weights


def test_a_profile_refuses_shapes_alone(config, monkeypatch, tmp_path, capsys):
    from dipgo_deploy.supernet import memory

    monkeypatch.setattr(memory, "free_host_bytes", lambda: 1000)
    assert run(["profile", "--random-weights", config, "--out", str(tmp_path / "latency.json")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: this UNet2DConditionModel was loaded without weights, a profile runs it: load")
    assert not (tmp_path / "latency.json").exists()


def test_guidance_and_steps_are_the_models_own_unless_asked_for(config, tmp_path, capsys):
    own, asked = str(tmp_path / "own.json"), str(tmp_path / "asked.json")
    (tmp_path / "sd.json").write_text(
        json.dumps({"denoiser": json.loads(Path(config).read_text()), "guidance": "concat", "steps": 7})
    )
    meta = ["--random-weights", str(tmp_path / "sd.json"), "--meta", "--ratio", "0.5"]
    assert run(["search", *meta, "--out", own, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["guidance"], summary["steps"], summary["sampler"]) == ("concat", 7, "DDIMScheduler")
    assert load_schedule(Path(own)).contract.guidance == "concat"
    assert run(["search", *meta, "--guidance-layout", "none", "--steps", "5", "--out", asked]) == 0
    assert "made for DDIMScheduler, guidance layout none\nnetwork calls: " in capsys.readouterr().out
    imported = ["import-schedule", *meta[:3], "--from", "deepcache", "--interval", "2", "--out", own]
    assert run([*imported, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["guidance"] == "concat"
    assert load_schedule(Path(own)).contract.sampler.steps == 7


def test_a_sampler_that_does_not_fold_is_said_with_an_option_that_makes_it_fold(config, tmp_path, capsys):
    search = ["search", "--random-weights", config, "--meta", "--steps", "4", "--sampler", "ddim", "--json"]
    search += ["--out", str(tmp_path / "schedule.json"), "--ratio", "0.5"]
    changed = [*search, "--sampler-option", "clip_sample=true", "--force"]
    assert run(changed) == 0
    out, err = capsys.readouterr()
    assert "note: DDIMScheduler clips its sample" in err and "--sampler-option clip_sample=false folds it" in err
    assert json.loads(out.splitlines()[-1])["sampler_not_linear"] == "clips its sample"
    assert run([*search, "--sampler-option", "clip_sample=false", "--force"]) == 0
    out, err = capsys.readouterr()
    assert "note:" not in err and json.loads(out.splitlines()[-1])["sampler_not_linear"] is None
    contract = load_schedule(tmp_path / "schedule.json").contract
    assert contract.sampler.config_dict["clip_sample"] is False
    assert run([*search, "--sampler-option", "clip_sample", "--force"]) == 2
    assert "give KEY=VALUE, such as clip_sample=false" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["search", "import-schedule", "profile"])
def test_help_says_that_the_models_own_is_the_default(command, capsys):
    assert run([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Layout of classifier-free guidance. Default: the model's own." in text
    if command != "profile":
        assert "full run. Default: the model's own." in text
        assert "Sampler by name. Default: the model's own." in text


@pytest.mark.slow
def test_another_size_goes_the_whole_way(config, tmp_path, capsys):
    schedule, bundle = str(tmp_path / "s.json"), str(tmp_path / "bundle")
    model = ["--random-weights", config]
    assert run(["search", *model, "--steps", "4", "--ratio", "0.5", "--size", "12x16", "--out", schedule]) == 0
    assert load_schedule(Path(schedule)).contract.latent_shape == (4, 12, 16)
    assert run(["export", *model, "--schedule", schedule, "--out", bundle]) == 0
    assert run(["verify", bundle, "--once"]) == 0
    assert run(["show", bundle]) == 0
    assert "4\N{MULTIPLICATION SIGN}12\N{MULTIPLICATION SIGN}16, fixed" in capsys.readouterr().out


def test_a_size_that_is_none_or_that_the_model_does_not_take(tmp_path, capsys):
    command = ["trace", "--random-weights", tmp_path / "config.json", "--out", tmp_path / "trace", "--size"]
    tiny("dit").module.save_config(tmp_path)
    for odd in ("8", "8x", "0x8", "8x8x8", "-8x8", "8 x 8", "999999x8"):
        refused([*command, odd], f"--size {odd!r} is not a size of a latent: give HEIGHTxWIDTH", capsys, 2)
    words = "makes outputs of shape (8, 8, 8) from latents of shape (4, 9, 9), but height and width must stay"
    refused([*command, "9x9"], words, capsys, 3)
    tiny("sd3").module.save_config(tmp_path)
    refused([*command, "32x32"], "this SD3Transformer2DModel cannot run on latents of shape (4, 32, 32)", capsys, 3)
