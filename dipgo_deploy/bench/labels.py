"""Where labels stand in a chart so that none covers another, a mark or the border: plain geometry, in points.

Labels are placed one by one, the crowded ones first, each at the nearest of many places around its mark that is still
free. Equal input gives equal places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Box", "leader_ends", "place_labels"]

_GAP = 8.0
"""Points between a mark's centre and its label."""

_STEP = 3.0
_FARTHEST = 160.0
_FAR = 0.02
"""Cost of a point of distance, in square points that are covered."""

_AIR = 1.5
"""Points around a label that stay free."""


@dataclass(frozen=True)
class Box:
    """A rectangle with ``left < right`` and ``bottom < top``."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Area that both cover."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, wide) * max(0.0, high)

    def outside(self, frame: Box) -> float:
        """Area that lies outside ``frame``."""
        return (self.right - self.left) * (self.top - self.bottom) - self.overlap(frame)


def place_labels(
    marks: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], taken: Sequence[Box], frame: Box
) -> list[Box]:
    """The box of each label.

    Args:
        marks: centres of what is labelled.
        sizes: width and height of each label.
        taken: what no label may cover besides the marks.
        frame: what no label may leave.
    """
    order = sorted(range(len(marks)), key=lambda i: (-_neighbours(i, marks), marks[i], i))
    around = [Box(x - 5, y - 5, x + 5, y + 5) for x, y in marks]
    placed: dict[int, Box] = {}
    leaders: list[Box] = []
    for index in order:
        labels = list(placed.values())
        standing = [*taken, *around, *labels, *leaders]
        crossed = [*labels, *(box for other, box in enumerate(around) if other != index)]
        placed[index] = _best_place(marks[index], sizes[index], standing, crossed, frame)
        leaders += _leader(marks[index], placed[index])
    return [placed[index] for index in range(len(marks))]


def _best_place(
    mark: tuple[float, float],
    size: tuple[float, float],
    standing: Sequence[Box],
    crossed: Sequence[Box],
    frame: Box,
) -> Box:
    """The place of least cost: what a label covers of ``standing``, its leader of ``crossed``, and its distance."""
    least, best = float("inf"), Box(0, 0, 0, 0)
    for away, box in sorted(_places(mark, size), key=lambda place: place[0]):
        if _FAR * away >= least:
            break
        cost = _FAR * away + _cost(box, standing, frame) + _crossing(_leader(mark, box), crossed)
        if cost < least:
            least, best = cost, box
    return best


def leader_ends(mark: tuple[float, float], box: Box) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Both ends of the line from a mark to a label that stands away from it; None for one that stands beside it."""
    x, y = mark
    near, middle = (box.left - 1 if box.left >= x else box.right + 1), (box.bottom + box.top) / 2
    return ((x, y), (near, middle)) if abs(middle - y) > 5 or abs(near - x) > _GAP + 2 else None


def _leader(mark: tuple[float, float], box: Box) -> list[Box]:
    """The line as a row of small boxes, a little away from the mark."""
    ends = leader_ends(mark, box)
    if ends is None:
        return []
    (x, y), (end_x, end_y) = ends
    count = max(2, int((abs(end_x - x) + abs(end_y - y)) / 3))
    points = ((x + (end_x - x) * i / count, y + (end_y - y) * i / count) for i in range(count))
    return [Box(px - 1, py - 1, px + 1, py + 1) for px, py in points if abs(px - x) + abs(py - y) > 8]


def _crossing(leader: Sequence[Box], crossed: Sequence[Box]) -> float:
    return 4 * sum(part.overlap(other) for part in leader for other in crossed)


def _neighbours(index: int, marks: Sequence[tuple[float, float]]) -> int:
    x, y = marks[index]
    return sum(abs(x - other_x) + abs(y - other_y) < 40 for other_x, other_y in marks)


def _places(mark: tuple[float, float], size: tuple[float, float]) -> Iterator[tuple[float, Box]]:
    """Places around a mark with their distance, to the right first, then to the left, higher and lower."""
    (x, y), (wide, high) = mark, size
    for rise in range(int(_FARTHEST / _STEP)):
        for sign in (1, -1) if rise else (1,):
            middle = y + sign * rise * _STEP
            for side, extra in ((1, 0.0), (-1, 2.0)):
                for shift in (0.0, 14.0, 34.0):
                    near = x + side * (_GAP + shift)
                    left = near if side > 0 else near - wide
                    away = rise * _STEP + extra + 1.2 * shift
                    yield away, Box(left, middle - high / 2, left + wide, middle + high / 2)


def _cost(box: Box, blocked: Sequence[Box], frame: Box) -> float:
    wider = Box(box.left - _AIR, box.bottom - _AIR, box.right + _AIR, box.top + _AIR)
    return sum(wider.overlap(other) for other in blocked) + 10 * wider.outside(frame)
