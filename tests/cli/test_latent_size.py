"""``--size``: one size or a range, from the trace to images and their verification."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dipgo_deploy.cli.latent_sizes import free_sizes, size_ranges
from dipgo_deploy.cli.main import run
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.tensors import SizeRange
from tests.models.families import tiny


def test_a_range_keeps_the_models_own_size_as_the_usual_one() -> None:
    assert size_ranges("32x32..128x96", (64, 64)) == (SizeRange(32, 64, 128), SizeRange(32, 64, 96))
    assert size_ranges("80x80..128x128", (64, 64)) == (SizeRange(80, 128, 128), SizeRange(80, 128, 128))
    assert size_ranges("8x8..16x24..32x32", (64, 64)) == (SizeRange(8, 16, 32), SizeRange(8, 24, 32))
    assert size_ranges("96x64", (8, 8)) == (SizeRange(96, 96, 96), SizeRange(64, 64, 64))
    assert free_sizes("96x64", 77) == {"tokens": 77, "height": 96, "width": 64} and free_sizes(None) == {}


@pytest.mark.parametrize("text", ["96", "0x8", "8x8..", "8x8...9x9", "1x1..2x2..3x3..4x4", "8,8"])
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size of a latent: give HEIGHTxWIDTH, such as 96x96, or a range"):
        size_ranges(text, (8, 8))


def test_sizes_out_of_order_are_refused() -> None:
    with pytest.raises(UsageError, match="not in order: give the smallest size before the largest"):
        size_ranges("32x32..16x64", (8, 8))


def test_a_range_goes_the_whole_way(tmp_path, capsys) -> None:
    tiny("ddpm").module.save_config(tmp_path)
    model = ["--random-weights", str(tmp_path / "config.json"), "--size", "8x8..16x16"]
    schedule, bundle = str(tmp_path / "s.json"), str(tmp_path / "bundle")
    search = ["search", *model, "--sampler", "ddim", "--steps", "3", "--ratio", "0.5", "--out", schedule]
    assert run(search) == 0
    assert run(["export", *model[:2], "--schedule", schedule, "--out", bundle]) == 0
    assert run(["show", bundle]) == 0
    assert "8 to 16 in steps of 2" in capsys.readouterr().out
    assert run(["verify", bundle, "--size", "16x12", "--images", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["passed"] is True
    out = str(tmp_path / "latents.npy")
    assert run(["generate", bundle, "--size", "10x14", "--count", "1", "--out", out]) == 0
    assert np.load(out).shape == (1, 3, 10, 14)
    assert run(["plan", bundle]) in (0, 5)
    assert run(["generate", bundle, "--size", "9x8", "--out", out, "--force"]) == 2
    assert "height is 9, but the contract takes 8 to 16 in steps of 2" in capsys.readouterr().err
