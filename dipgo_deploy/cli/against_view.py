"""The view of ``verify A --against B``: the images of two bundles, seed by seed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from dipgo_deploy.verify import BundleComparison

__all__ = ["against_view"]


def against_view(comparison: BundleComparison) -> RenderableType:
    """A row per image, and below the rows the largest difference and the PSNR over all images.

    Args:
        comparison: the result of comparing two bundles.

    Returns:
        A rich renderable.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("seed", "max abs of latents", "PSNR dB"):
        table.add_column(name, justify="right")
    for image in comparison.images:
        table.add_row(str(image.seed), f"{image.max_abs:.1e}", f"{image.psnr_db:.1f}")
    psnr = comparison.psnr
    what = "images" if comparison.decoded else "latents, because the bundle has no VAE that decodes them"
    lines = (
        f"latents differ by at most {comparison.max_abs:.1e}, their largest value is {comparison.largest:.3g}",
        f"PSNR median {psnr['p50']:.1f} dB, p10 {psnr['p10']:.1f} dB, worst {psnr['worst']:.1f} dB of {what}",
    )
    return Group(table, *map(Text, lines))
