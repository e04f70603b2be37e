"""Two bundles are compared by what they draw from the same seeds and classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch

from dipgo_deploy.bundle import export, load_bundle
from dipgo_deploy.cli.main import run
from dipgo_deploy.core.errors import InputError
from dipgo_deploy.core.metrics import psnr_db
from dipgo_deploy.core.schedule import full_schedule
from dipgo_deploy.runtime import GenerateOptions, generate
from dipgo_deploy.verify import VerifyOptions, compare_bundles
from dipgo_deploy.verify.against import _decoded

TWO = VerifyOptions(images=2, seed=5)


@pytest.fixture(scope="module")
def full(bundle_folder: Path, digits_unet, tmp_path_factory) -> Path:
    """The full run of the same contract."""
    old = load_bundle(bundle_folder).schedule
    schedule = full_schedule(old.contract, old.granularity, old.kind, old.blocks)
    return export(digits_unet, schedule, tmp_path_factory.mktemp("full") / "bundle")


def test_a_bundle_equals_itself(bundle_folder: Path):
    bundle = load_bundle(bundle_folder)
    comparison = compare_bundles(bundle, bundle, TWO)
    assert comparison.max_abs == 0 and comparison.psnr["worst"] == 120 and comparison.decoded


def test_differences_are_those_of_the_generated_images(bundle_folder: Path, full: Path):
    first, second = load_bundle(bundle_folder), load_bundle(full)
    comparison = compare_bundles(first, second, TWO)
    ours, theirs = (
        np.concatenate([generate(bundle, GenerateOptions(seed=5 + label, classes=(label,))) for label in (0, 1)])
        for bundle in (first, second)
    )
    assert [image.seed for image in comparison.images] == [5, 6]
    for image, ours_of, theirs_of in zip(comparison.images, ours, theirs, strict=True):
        assert abs(image.max_abs - np.abs(ours_of - theirs_of).max()) < 1e-5
        assert abs(image.psnr_db - psnr_db(theirs_of[None], ours_of[None])[0]) < 1e-3


def test_latents_of_different_shapes_are_refused(bundle_folder: Path):
    bundle = load_bundle(bundle_folder)
    wide = replace(bundle.manifest.contract, latent_shape=(1, 16, 24))
    other = replace(bundle, manifest=replace(bundle.manifest, contract=wide))
    with pytest.raises(InputError, match=r"of shape \(1, 16, 16\), .* of shape \(1, 16, 24\): compare bundles of one"):
        compare_bundles(bundle, other, TWO)


def test_latents_are_decoded_as_the_pipeline_does(sd_bundle: Path):
    vae = diffusers.AutoencoderKL.from_pretrained(sd_bundle / "vae")
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = vae.decode(latents / vae.config.scaling_factor).sample.numpy()
    assert np.abs(_decoded(load_bundle(sd_bundle), latents.numpy()) - wanted).max() < 1e-5


def test_the_command_prints_a_row_per_image_and_has_a_gate(bundle_folder: Path, full: Path, capsys):
    command = ["verify", str(bundle_folder), "--against", str(full), "--images", "2"]
    assert run(command) == 0
    assert "latents differ by at most" in (text := capsys.readouterr().out) and "1001" in text
    assert run([*command, "--min-psnr", "119", "--json"]) == 4
    assert "median PSNR of the two bundles is" in capsys.readouterr().err
    assert run([*command, "--once"]) == 2
