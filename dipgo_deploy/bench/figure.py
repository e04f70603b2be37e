"""Drawing and saving of pictures: matplotlib figures, and grids of images. Equal input gives equal bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.metrics import unit_range

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FAINT", "INK", "check_picture", "image_grid", "new_figure"]

INK, FAINT = "#222222", "#777777"
"""Text colours: INK for what is read first, FAINT for explanations."""

_LABEL_PIXELS = 14


def check_picture(path: Path) -> None:
    """Raise UsageError unless ``path`` ends in .png or .svg."""
    if path.suffix not in (".png", ".svg"):
        raise UsageError(f"a picture must end in .png or .svg, got {path}: rename it")


@contextmanager
def new_figure(path: Path, **options: Any) -> Iterator[Figure]:
    """Yield a matplotlib figure and write the figure to ``path`` afterwards.

    Args:
        path: a .png or .svg file.
        **options: arguments of ``matplotlib.figure.Figure``.

    Raises:
        UsageError: another suffix.
        InputError: ``path`` cannot be written.
    """
    check_picture(path)
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # The salt and the metadata keep random ids, dates and versions out of the file. A later command replaces only
    # pictures that name us.
    style = {"svg.hashsalt": "dipgo-deploy", "font.family": "DejaVu Sans", "font.size": 9, "text.color": INK}
    metadata = {"Date": None, "Creator": "dipgo-deploy"} if path.suffix == ".svg" else {"Software": "dipgo-deploy"}
    buffer = BytesIO()
    with rc_context(style):
        figure = Figure(**options)
        yield figure
        figure.savefig(buffer, format=path.suffix[1:], dpi=150, metadata=metadata)
    write_atomic(path, buffer.getvalue())


def image_grid(
    images: np.ndarray, path: Path | str, columns: int, scale: int = 6, labels: Sequence[str] | None = None
) -> None:
    """Write images row by row to one PNG.

    Args:
        images: (N, C, H, W) in [-1, 1], with C = 1 or 3.
        path: the PNG file.
        columns: images per row.
        scale: pixels of the PNG per pixel of an image.
        labels: text below each image.

    Raises:
        UsageError: images of another shape, no images, or another number of labels.
    """
    from PIL import Image, ImageDraw
    from PIL.PngImagePlugin import PngInfo

    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images) or columns < 1:
        raise UsageError(
            f"an image grid needs images of shape (N, 1 or 3, H, W) and 1 column or more, "
            f"got shape {images.shape} and {columns} columns"
        )
    if labels is not None and len(labels) != len(images):
        raise UsageError(f"an image grid needs one label per image, got {len(labels)} labels for {len(images)} images")
    gap, label_height = max(2, scale), _LABEL_PIXELS if labels is not None else 0
    height, width = (size * scale for size in images.shape[2:])
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + label_height + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        left, top = gap + index % columns * (width + gap), gap + index // columns * (height + label_height + gap)
        sheet.paste(Image.fromarray(_pixels(image)).resize((width, height), Image.Resampling.NEAREST), (left, top))
        if labels is not None:
            pen.text((left + width // 2, top + height + 1), labels[index], fill=INK, anchor="ma")
    buffer = BytesIO()
    marked = PngInfo()
    marked.add_text("Software", "dipgo-deploy")
    sheet.save(buffer, format="PNG", pnginfo=marked)
    write_atomic(Path(path), buffer.getvalue())


def _pixels(image: np.ndarray) -> np.ndarray:
    """(C, H, W) in [-1, 1] to (H, W, 3) bytes."""
    values = np.rint(unit_range(image) * 255).astype(np.uint8)
    return np.repeat(values, 3, axis=0).transpose(1, 2, 0) if len(values) == 1 else values.transpose(1, 2, 0)
