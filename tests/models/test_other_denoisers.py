"""The second denoiser of a pipeline stays in PyTorch, and that is said where the model is loaded and where it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dipgo_deploy.models import load_model
from dipgo_deploy.models.other_denoisers import other_denoisers, other_denoisers_note
from tests.models.families import tiny

WAN = {"transformer": ["diffusers", "WanTransformer3DModel"], "transformer_2": ["diffusers", "WanTransformer3DModel"]}

INDEXES = {
    "Wan 2.2": ({**WAN, "boundary_ratio": 0.875, "vae": ["diffusers", "AutoencoderKLWan"]}, ["transformer_2"]),
    "Wan 2.1": ({**WAN, "transformer_2": [None, None], "boundary_ratio": None}, []),
    "Kandinsky": (
        {
            "unet": ["diffusers", "UNet2DConditionModel"], "movq": ["diffusers", "VQModel"],
            "prior_prior": ["diffusers", "PriorTransformer"], "scheduler": ["diffusers", "DDPMScheduler"],
        },
        ["prior_prior"],
    ),
    "two U-Nets": (
        {"unet": ["diffusers", "UNet2DConditionModel"], "unet_2": ["diffusers", "UNet2DModel"]}, ["unet_2"],
    ),
    "Stable Diffusion": (
        {
            "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
            "text_encoder": ["transformers", "CLIPTextModel"], "requires_safety_checker": True,
        },
        [],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", INDEXES)
def test_networks_that_take_a_time_are_found_by_their_class(name: str) -> None:
    index, others = INDEXES[name]
    component = next(iter(index))
    assert list(other_denoisers(index, component)) == others
    assert bool(other_denoisers_note(index, component)) == bool(others)


def test_a_folder_with_two_transformers_says_what_was_assumed(tmp_path: Path) -> None:
    index = {
        "_class_name": "WanPipeline",
        **INDEXES["Wan 2.2"][0],
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    }
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    tiny("wan").module.save_config(tmp_path / "transformer")
    (note,) = [text for text in load_model(tmp_path, meta=True).assumptions if "transformer_2" in text]
    assert note.startswith(
        "only transformer is deployed, and transformer_2 (WanTransformer3DModel) of the pipeline stays"
    )
    assert "uses transformer above 0.875 of the training timesteps only" in note and "load_pipeline uses both" in note
