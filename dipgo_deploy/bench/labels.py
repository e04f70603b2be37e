"""Where labels stand in a chart so that none covers another, a mark or the border: plain geometry, in points.

Labels are placed one by one, the crowded ones first, each at the nearest of many places around its mark that is still
free. Equal input gives equal places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

import numpy as np

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
        standing = _array([*taken, *around, *labels, *leaders])
        crossed = _array([*labels, *(box for other, box in enumerate(around) if other != index)])
        placed[index] = _best_place(marks[index], sizes[index], standing, crossed, frame)
        leaders += _leader(marks[index], placed[index])
    return [placed[index] for index in range(len(marks))]


def _best_place(
    mark: tuple[float, float],
    size: tuple[float, float],
    standing: np.ndarray,
    crossed: np.ndarray,
    frame: Box,
) -> Box:
    """The place of least cost: what a label covers of ``standing``, its leader of ``crossed``, and its distance.

    A leader only adds to a cost: it is drawn where the rest is below the least so far.
    """
    places = sorted(_places(mark, size), key=lambda place: place[0])
    boxes = [box for _, box in places]
    costs = _FAR * np.array([away for away, _ in places]) + _costs(_array(boxes), standing, frame)
    least, best = float("inf"), boxes[0]
    for cost, box in zip(costs.tolist(), boxes, strict=True):
        if cost < least:
            cost += 4 * float(_overlaps(_array(_leader(mark, box)), crossed).sum())
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


def _array(boxes: Sequence[Box]) -> np.ndarray:
    """One row of left, bottom, right and top for each box."""
    return np.array([astuple(box) for box in boxes], float).reshape(-1, 4)


def _overlaps(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Area that each of ``some`` shares with each of ``others``."""
    wide = np.minimum(some[:, None, 2], others[:, 2]) - np.maximum(some[:, None, 0], others[:, 0])
    high = np.minimum(some[:, None, 3], others[:, 3]) - np.maximum(some[:, None, 1], others[:, 1])
    return np.maximum(wide, 0) * np.maximum(high, 0)


def _costs(boxes: np.ndarray, blocked: np.ndarray, frame: Box) -> np.ndarray:
    """What each box, with some air, covers of ``blocked``, and tenfold what of it lies outside the frame."""
    wider = boxes + np.array([-_AIR, -_AIR, _AIR, _AIR])
    areas = (wider[:, 2] - wider[:, 0]) * (wider[:, 3] - wider[:, 1])
    outside = areas - _overlaps(wider, _array([frame]))[:, 0]
    return np.asarray(_overlaps(wider, blocked).sum(axis=1) + 10 * outside)
