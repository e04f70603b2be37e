"""Guidance layout and steps that a model's own pipeline takes, where nobody asks for others."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dipgo_deploy.models import load_model, load_random, make_contract, read_random_config, shipped_configs
from dipgo_deploy.models.contracts import default_guidance, default_steps
from tests.models.families import FAMILIES, tiny

ROOT = Path(__file__).parents[2]


def in_pipeline(name: str, pipeline: object, folder: Path):
    """A tiny model as that of a pipeline folder."""
    (folder / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
    return replace(tiny(name), folder=folder)


@pytest.mark.parametrize("name", shipped_configs())
def test_a_shipped_config_says_both(name: str) -> None:
    model, config = load_random(name, device="meta"), read_random_config(name)
    assert (default_guidance(model), default_steps(model)) == (config.guidance, config.steps)


@pytest.mark.parametrize(
    ("name", "pipeline", "guidance", "steps"),
    [
        ("sd", "StableDiffusionPipeline", "concat", 50),
        ("sdxl", "StableDiffusionXLPipeline", "concat", 50),
        ("sd", "LDMTextToImagePipeline", "none", 50),
        ("ddpm", "DDPMPipeline", "none", 1000),
        ("dit", "DiTPipeline", "concat", 50),
        ("pixart-alpha", "PixArtAlphaPipeline", "concat", 20),
        ("pixart-sigma", "PixArtSigmaPipeline", "concat", 20),
        ("sd3", "StableDiffusion3Pipeline", "concat", 28),
        ("flux", "FluxPipeline", "none", 28),
        ("wan", "WanPipeline", "none", 50),
        ("dit", "DiffusionPipeline", "none", 50),
        ("dit", "NoSuchPipeline", "concat", 50),
        ("sd", ["their.code", "Pipeline"], "concat", 50),
        ("sd", "UNet2DConditionModel", "concat", 50),
    ],
)
def test_a_pipeline_folder_takes_what_its_pipeline_takes(name, pipeline, guidance, steps, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    model = in_pipeline(name, pipeline, tmp_path)
    assert (default_guidance(model), default_steps(model)) == (guidance, steps)


def test_nothing_is_said_while_a_pipeline_is_looked_up(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    code = (
        "import sys\nfrom dataclasses import replace\nfrom pathlib import Path\n"
        "from tests.models.families import tiny\nfrom dipgo_deploy.models.usual_run import default_guidance\n"
        "print(default_guidance(replace(tiny('sd'), folder=Path(sys.argv[1]))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert done.stdout == "concat\n" and "CLIPImageProcessor" not in done.stderr


@pytest.mark.parametrize("name", FAMILIES)
def test_a_bare_denoiser_takes_what_pipelines_of_its_class_do(name: str) -> None:
    expected = "none" if name in ("ddpm", "flux", "wan") else "concat"
    assert (default_guidance(tiny(name)), default_steps(tiny(name))) == (expected, 50)


def test_a_guidance_distilled_unet_has_no_unconditional_rows(tmp_path: Path) -> None:
    model = in_pipeline("sd", "LatentConsistencyModelPipeline", tmp_path)
    assert default_guidance(replace(model, config={**model.config, "time_cond_proj_dim": 8})) == "none"


def test_what_is_asked_for_wins() -> None:
    model = replace(tiny("sd"), guidance="concat", steps=7)
    own, asked = make_contract(model), make_contract(model, steps=5, guidance="none")
    assert (own.guidance, own.sampler.steps) == ("concat", 7)
    assert (asked.guidance, asked.sampler.steps) == ("none", 5)


@pytest.mark.parametrize("name", ["digits-unet", "digits-dit"])
def test_the_shipped_models_run_as_ever(name: str) -> None:
    contract = make_contract(load_model(name))
    assert (contract.guidance, contract.sampler.steps, contract.sampler.class_name) == ("none", 50, "DDIMScheduler")


def test_no_pipeline_is_imported_for_what_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = in_pipeline("sd", "StableDiffusionPipeline", tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert (
        default_guidance(replace(model, guidance="concat")) == "concat" and default_steps(replace(model, steps=9)) == 9
    )
