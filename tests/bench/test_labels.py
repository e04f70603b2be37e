from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from dipgo_deploy.bench.labels import Box, leader_ends, place_labels

FRAME = Box(0, 0, 500, 400)


def overlaps(boxes: list[Box]) -> list[tuple[int, int]]:
    return [pair for pair in combinations(range(len(boxes)), 2) if boxes[pair[0]].overlap(boxes[pair[1]])]


def test_a_lone_label_stands_to_the_right_of_its_mark():
    (box,) = place_labels([(100, 200)], [(60, 10)], [], FRAME)
    assert (box.left, box.bottom, box.right, box.top) == (108, 195, 168, 205)
    assert leader_ends((100, 200), box) is None


def test_at_the_right_border_it_stands_to_the_left():
    (box,) = place_labels([(480, 200)], [(60, 10)], [], FRAME)
    assert (box.left, box.right) == (412, 472)


@pytest.mark.parametrize("seed", range(5))
def test_twenty_labels_of_close_marks_cover_neither_each_other_nor_marks(seed):
    spread = np.random.default_rng(seed).normal(0, (6, 40), (20, 2))
    marks = [(220 + float(x), 200 + float(y)) for x, y in spread]
    boxes = place_labels(marks, [(120, 9)] * 20, [], FRAME)
    assert overlaps(boxes) == []
    assert not [
        mark for mark in marks for box in boxes if box.overlap(Box(mark[0] - 4, mark[1] - 4, mark[0] + 4, mark[1] + 4))
    ]
    assert not [box for box in boxes if box.outside(FRAME)]
    assert boxes == place_labels(marks, [(120, 9)] * 20, [], FRAME)


def test_what_is_taken_stays_free_and_the_label_hangs_on_a_line():
    wall = Box(105, 150, 300, 250)
    (box,) = place_labels([(100, 200)], [(150, 10)], [wall], FRAME)
    assert not box.overlap(wall)
    (start, end) = leader_ends((100, 200), box)
    assert start == (100, 200) and end[1] == (box.bottom + box.top) / 2


def test_overlap_is_an_area():
    assert Box(0, 0, 2, 2).overlap(Box(1, 1, 5, 5)) == 1
    assert Box(0, 0, 2, 2).overlap(Box(2, 0, 3, 2)) == 0
    assert Box(-1, 0, 1, 2).outside(Box(0, 0, 9, 9)) == 2
