"""Drawing and saving of pictures: matplotlib figures, and grids of images. Equal input gives equal bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dipgo_deploy.bench.image_files import pixels_of, write_image
from dipgo_deploy.core.disk import write_atomic
from dipgo_deploy.core.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.ImageDraw import ImageDraw

__all__ = ["FAINT", "INK", "check_picture", "image_grid", "new_figure"]

INK, FAINT = "#222222", "#777777"
"""Text colours: INK for what is read first, FAINT for explanations."""

_LABEL_PIXELS, _FONT_PIXELS = 14, 10


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
    images: np.ndarray,
    path: Path | str,
    columns: int,
    scale: int = 6,
    labels: Sequence[str] | None = None,
    note: Mapping[str, Any] | None = None,
) -> None:
    """Write images row by row to one picture.

    Args:
        images: (N, C, H, W) in [-1, 1], with C = 1 or 3.
        path: a .png, .jpg or .jpeg file.
        columns: images per row.
        scale: pixels of the picture per pixel of an image.
        labels: text below each image, of one or more lines. A line that is too long ends in an ellipsis.
        note: what the images show, for the metadata of the file.

    Raises:
        UsageError: images of another shape, no images, another number of labels, or another suffix.
        InputError: ``path`` cannot be written.
    """
    from PIL import Image, ImageDraw

    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images) or columns < 1:
        raise UsageError(
            f"an image grid needs images of shape (N, 1 or 3, H, W) and 1 column or more, "
            f"got shape {images.shape} and {columns} columns"
        )
    if labels is not None and len(labels) != len(images):
        raise UsageError(f"an image grid needs one label per image, got {len(labels)} labels for {len(images)} images")
    gap = max(2, scale)
    label_height = _LABEL_PIXELS * max((label.count("\n") + 1 for label in labels or ()), default=0)
    height, width = (size * scale for size in images.shape[2:])
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + label_height + gap) + gap), "white")
    pen = ImageDraw.Draw(sheet)
    for index, image in enumerate(images):
        left, top = gap + index % columns * (width + gap), gap + index // columns * (height + label_height + gap)
        sheet.paste(Image.fromarray(pixels_of(image)).resize((width, height), Image.Resampling.NEAREST), (left, top))
        if labels is not None:
            _draw_label(pen, labels[index], (left + width // 2, top + height + 1), width + gap)
    write_image(sheet, Path(path), note)


def _draw_label(pen: ImageDraw, label: str, place: tuple[int, int], width: int) -> None:
    """Write the lines of a label below one another, centred at ``place``."""
    font = _font()
    for number, line in enumerate(label.split("\n")):
        shown = line
        while len(shown) > 1 and pen.textlength(shown, font=font) > width:
            shown = shown.removesuffix("…")[:-1] + "…"
        pen.text((place[0], place[1] + number * _LABEL_PIXELS), shown, fill=INK, anchor="ma", font=font)


@cache
def _font() -> Any:
    """The font of all pictures, which has more letters than Pillow's own font."""
    from matplotlib import get_data_path
    from PIL import ImageFont

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _FONT_PIXELS)
