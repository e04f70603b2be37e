"""A small SVG canvas for the drawings: a card of fixed width that is readable on light and dark pages."""

from __future__ import annotations

from pathlib import Path
from xml.sax.saxutils import escape

__all__ = ["ACCENT", "BLUE", "FAINT", "INK", "MUTED", "PALE", "WIDTH", "Svg"]

WIDTH = 400
"""Every drawing is 400 units wide. On a phone, one unit is then about one pixel."""

INK, MUTED, FAINT = "#1b2733", "#5b6875", "#d5dce3"
BLUE, PALE, ACCENT = "#2b6cb0", "#cfe1f2", "#c05621"

_STYLE = "font-family:system-ui,-apple-system,'Segoe UI',Roboto,Helvetica,Arial,'DejaVu Sans',sans-serif"
_MONO = "ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace"


class Svg:
    """Collects shapes. The card has its own background, so the page's colour scheme does not matter."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._shapes: list[str] = []

    def rect(self, x: float, y: float, w: float, h: float, fill: str, *, round_by: float = 2, line: str = "") -> None:
        """Draw a filled rectangle, with an outline where ``line`` is a colour."""
        stroke = f' stroke="{line}"' if line else ""
        self._shapes.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{round_by:g}" fill="{fill}"{stroke}/>'
        )

    def text(
        self, x: float, y: float, words: str, *, size: float = 12, fill: str = INK, anchor: str = "start",
        mono: bool = False, bold: bool = False,
    ) -> None:  # fmt: skip
        """Write ``words`` with their baseline at ``y``."""
        family = f' font-family="{_MONO}"' if mono else ""
        weight = ' font-weight="600"' if bold else ""
        self._shapes.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{fill}" text-anchor="{anchor}"{family}{weight}>'
            f"{escape(words)}</text>"
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, stroke: str = MUTED, width: float = 1) -> None:
        """Draw a straight line."""
        self._shapes.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{stroke}" stroke-width="{width:g}"/>'
        )

    def circle(self, x: float, y: float, r: float, fill: str, line: str = "none") -> None:
        """Draw a circle."""
        self._shapes.append(f'<circle cx="{x:g}" cy="{y:g}" r="{r:g}" fill="{fill}" stroke="{line}"/>')

    def path(self, commands: str, fill: str) -> None:
        """Draw a filled path from SVG path commands."""
        self._shapes.append(f'<path d="{commands}" fill="{fill}" shape-rendering="crispEdges"/>')

    def document(self, height: float) -> str:
        """The whole SVG file for a card of ``height`` units."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" '
            f'height="{height:g}" role="img" style="{_STYLE}">'
        )
        card = (
            f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1:g}" rx="8" fill="#fff" stroke="{FAINT}"/>'
        )
        return "\n".join([head, f"<title>{escape(self.title)}</title>", card, *self._shapes, "</svg>", ""])

    def save(self, path: Path, height: float) -> None:
        """Write the SVG file."""
        path.write_text(self.document(height), encoding="utf-8")
