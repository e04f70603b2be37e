"""Sizes of the latent on the command line: one size, or a range for runs to choose from."""

from __future__ import annotations

import re

from dipgo_deploy.core.errors import UsageError
from dipgo_deploy.core.tensors import HEIGHT, TOKENS, WIDTH, SizeRange

__all__ = ["check_size_text", "free_sizes", "size_ranges"]

_SIZE = r"[1-9]\d{0,4}x[1-9]\d{0,4}"


def size_ranges(text: str, usual: tuple[int, ...]) -> tuple[SizeRange, SizeRange]:
    """Parse ``32x32..128x128`` (smallest and largest size of the latent), or one size alone, as ``96x96``.

    Three sizes are smallest, usual and largest.

    Args:
        text: the option's text.
        usual: height and width of the model's own latent, the usual size of a range that holds them.

    Returns:
        The ranges of height and width.

    Raises:
        UsageError: other text, or sizes that are not in order.
    """
    check_size_text(text)
    sizes = [tuple(map(int, size.split("x"))) for size in text.split("..")]
    low, high = sizes[0], sizes[-1]
    is_within = all(a <= own <= b for a, own, b in zip(low, usual, high, strict=True))
    middle = sizes[1] if len(sizes) == 3 else usual if is_within else high
    if not all(a <= b <= c for a, b, c in zip(low, middle, high, strict=True)):
        raise UsageError(f"--size {text} is not in order: give the smallest size before the largest, as 32x32..128x128")
    height, width = (SizeRange(*ends) for ends in zip(low, middle, high, strict=True))
    return height, width


def check_size_text(text: str) -> None:
    """Raise UsageError for text that is neither a size of a latent nor a range of sizes."""
    if not re.fullmatch(rf"{_SIZE}(\.\.{_SIZE}){{0,2}}", text):
        raise UsageError(
            f"--size {text!r} is not a size of a latent: give HEIGHTxWIDTH, such as 96x96, or a range, such as "
            "32x32..128x128"
        )


def free_sizes(size: str | None, tokens: int | None = None) -> dict[str, int]:
    """The sizes that a run chooses.

    Args:
        size: of the latent, as ``HEIGHTxWIDTH``. None for the usual one.
        tokens: length of the text. None for the usual one.

    Returns:
        Values by symbol.

    Raises:
        UsageError: ``size`` is not one size.
    """
    chosen = {} if tokens is None else {TOKENS: tokens}
    if size is None:
        return chosen
    if not re.fullmatch(_SIZE, size):
        raise UsageError(f"--size {size!r} is not a size of a latent: give HEIGHTxWIDTH, such as 96x96")
    height, width = map(int, size.split("x"))
    return {**chosen, HEIGHT: height, WIDTH: width}
