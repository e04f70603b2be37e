"""Areas of rectangles, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from dipgo_deploy.bench.labels import Box

__all__ = ["collisions", "outside", "overlap"]


def overlap(one: Box, other: Box) -> float:
    """Area that both cover."""
    wide = min(one.right, other.right) - max(one.left, other.left)
    high = min(one.top, other.top) - max(one.bottom, other.bottom)
    return max(0.0, wide) * max(0.0, high)


def outside(box: Box, frame: Box) -> float:
    """Area of ``box`` that lies outside ``frame``."""
    return (box.right - box.left) * (box.top - box.bottom) - overlap(box, frame)


def collisions(boxes: Sequence[Box]) -> list[tuple[Box, Box]]:
    """Pairs that overlap."""
    return [pair for pair in combinations(boxes, 2) if overlap(*pair)]
