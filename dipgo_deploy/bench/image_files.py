"""Writing images as PNG or JPEG, with a note of what they show. Equal input gives equal bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.metrics import unit_range

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["IMAGE_SUFFIXES", "pixels_of", "read_note", "save_array", "save_image", "write_image"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
"""Suffixes of pictures of images."""

_PROGRAM = "dipgo-deploy"
_DESCRIPTION = 0x010E
_SOFTWARE = 0x0131
"""Tags of EXIF."""

_JPEG_QUALITY = 95


def save_image(image: np.ndarray, path: Path, note: Mapping[str, Any] | None = None) -> None:
    """Write one image at its own size.

    Args:
        image: (C, H, W) in [-1, 1], with C = 1 or 3.
        path: a .png, .jpg or .jpeg file.
        note: what the image shows, such as its seed.

    Raises:
        UsageError: an array of another shape, or another suffix.
        InputError: ``path`` cannot be written.
    """
    from PIL import Image

    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise UsageError(f"an image has shape (1 or 3, H, W), got {image.shape}: save an array as .npy")
    write_image(Image.fromarray(pixels_of(image)), path, note)


def save_array(array: np.ndarray, path: Path) -> None:
    """Write an array as .npy, in float32. Raises InputError if ``path`` cannot be written."""
    buffer = BytesIO()
    np.save(buffer, np.ascontiguousarray(array, dtype=np.float32), allow_pickle=False)
    write_atomic(path, buffer.getvalue())


def write_image(picture: Image, path: Path, note: Mapping[str, Any] | None = None) -> None:
    """Write a Pillow image with a note.

    Args:
        picture: an RGB image.
        path: a .png, .jpg or .jpeg file.
        note: plain data. PNG holds the note as text ``dipgo-deploy``, JPEG as the description in its EXIF data.

    Raises:
        UsageError: another suffix.
        InputError: ``path`` cannot be written.
    """
    suffix, buffer = path.suffix.lower(), BytesIO()
    if suffix not in IMAGE_SUFFIXES:
        raise UsageError(f"an image must end in {', '.join(IMAGE_SUFFIXES)}, got {path}: rename it")
    text = json.dumps(note or {})
    if suffix == ".png":
        picture.save(buffer, format="PNG", pnginfo=_png_note(text))
    else:
        picture.save(buffer, format="JPEG", quality=_JPEG_QUALITY, subsampling=0, exif=_jpeg_note(text))
    write_atomic(path, buffer.getvalue())


def _png_note(text: str) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("Software", _PROGRAM)
    info.add_text(_PROGRAM, text)
    return info


def _jpeg_note(text: str) -> Any:
    from PIL.Image import Exif

    exif = Exif()
    exif[_SOFTWARE], exif[_DESCRIPTION] = _PROGRAM, text
    return exif


def read_note(path: Path) -> dict[str, Any]:
    """The note of an image that `write_image` wrote. Empty if the image has none."""
    from PIL import Image

    with Image.open(path) as picture:
        text = picture.info.get(_PROGRAM) or picture.getexif().get(_DESCRIPTION) or "{}"
    note: dict[str, Any] = json.loads(text)
    return note


def pixels_of(image: np.ndarray) -> np.ndarray:
    """(C, H, W) in [-1, 1] to (H, W, 3) bytes."""
    values = np.rint(unit_range(image) * 255).astype(np.uint8)
    return np.repeat(values, 3, axis=0).transpose(1, 2, 0) if len(values) == 1 else values.transpose(1, 2, 0)
