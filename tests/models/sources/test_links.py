"""A model folder may consist of links, and a link that leads nowhere is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from dipgo_deploy.core.errors import InputError
from dipgo_deploy.models import load_model
from tests.bundle.test_files import hub_cache


@pytest.fixture
def sharded(sd_pipeline: Path, tmp_path: Path) -> Path:
    """The pipeline with its denoiser in shards."""
    folder = Path(shutil.copytree(sd_pipeline, tmp_path / "pipeline"))
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="100KB")
    return folder


def test_shards_in_the_hubs_cache_and_a_shared_denoiser(sharded: Path, sd_pipeline: Path, tmp_path: Path):
    wanted = UNet2DConditionModel.from_pretrained(sd_pipeline / "unet").state_dict()
    cached = hub_cache(sharded, tmp_path / "hub")
    (tmp_path / "alias").symlink_to(cached)
    (sharded / "unet").rename(tmp_path / "shared")
    (sharded / "unet").symlink_to("../shared")
    for folder in (cached, tmp_path / "alias", sharded):
        state = load_model(folder).module.state_dict()
        assert state.keys() == wanted.keys() and all(torch.equal(state[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "scheduler",
        "vae",
        "unet/config.json",
        "unet/diffusion_pytorch_model-00001-of-00003.safetensors",
        "",
    ],
)
def test_broken_links_and_loops_are_named(sharded: Path, name: str):
    path = sharded / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to("gone")
    with pytest.raises(InputError, match=f"{path} is a link that leads to .*gone, which does not exist: restore it"):
        load_model(sharded)
    path.unlink()
    path.symlink_to(path.name)
    with pytest.raises(InputError, match=f"{path} is a link that leads back to itself: restore it"):
        load_model(sharded)


def test_links_that_the_model_does_not_need_may_be_broken(sharded: Path):
    (sharded / "unet" / "diffusion_pytorch_model.fp16.safetensors").symlink_to("gone")
    (sharded / "flax").symlink_to("gone")
    load_model(sharded)
