"""Single images and arrays on disk, and what their metadata says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dipgo_deploy.bench.image_files import read_note, save_array, save_image
from dipgo_deploy.core.errors import UsageError

IMAGE = np.linspace(-1.2, 1.2, 3 * 8 * 8, dtype=np.float32).reshape(3, 8, 8)


@pytest.mark.parametrize(("name", "format_"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("b.JPEG", "JPEG")])
def test_an_image_keeps_its_size_its_pixels_and_its_note(name: str, format_: str, tmp_path: Path) -> None:
    note = {"seed": 7, "prompt": "a snail “eating” café"}
    for path in (tmp_path / name, tmp_path / f"again-{name}"):
        save_image(IMAGE, path, note)
    assert (tmp_path / name).read_bytes() == (tmp_path / f"again-{name}").read_bytes()
    with Image.open(tmp_path / name) as picture:
        assert (picture.format, picture.size) == (format_, (8, 8))
        pixels = np.asarray(picture.convert("RGB"), dtype=np.float64)
    expected = np.rint((np.clip(IMAGE, -1, 1) / 2 + 0.5) * 255).transpose(1, 2, 0)
    assert np.abs(pixels - expected).max() <= (0 if format_ == "PNG" else 40)
    assert read_note(tmp_path / name) == note
    # A command replaces only pictures that name the program near their beginning.
    assert b"dipgo-deploy" in (tmp_path / name).read_bytes()[:4096]


def test_latents_are_not_clipped(tmp_path: Path) -> None:
    save_array(9 * IMAGE[None].astype(np.float64), tmp_path / "latents.npy")
    latents = np.load(tmp_path / "latents.npy")
    assert latents.dtype == np.float32 and np.array_equal(latents, 9 * IMAGE[None])


def test_other_suffixes_and_shapes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in \.png, \.jpg, \.jpeg, got .*a\.gif"):
        save_image(IMAGE, tmp_path / "a.gif")
    with pytest.raises(UsageError, match=r"an image has shape \(1 or 3, H, W\), got \(4, 8, 8\)"):
        save_image(np.zeros((4, 8, 8)), tmp_path / "a.png")
    assert not list(tmp_path.iterdir())
