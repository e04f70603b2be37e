from __future__ import annotations

import numpy as np
import pytest

from dipgo_deploy.bench.labels import Box, _array, _costs, _overlaps, leader_ends, place_labels
from tests.bench.boxes import collisions, outside, overlap

FRAME = Box(0, 0, 500, 400)


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
    assert collisions(boxes) == []
    around = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in marks]
    assert not [mark for mark in around for box in boxes if overlap(box, mark)]
    assert not [box for box in boxes if outside(box, FRAME)]
    assert boxes == place_labels(marks, [(120, 9)] * 20, [], FRAME)


def test_what_is_taken_stays_free_and_the_label_hangs_on_a_line():
    wall = Box(105, 150, 300, 250)
    (box,) = place_labels([(100, 200)], [(150, 10)], [wall], FRAME)
    assert not overlap(box, wall)
    (start, end) = leader_ends((100, 200), box)
    assert start == (100, 200) and end[1] == (box.bottom + box.top) / 2


@pytest.mark.parametrize("others", [0, 7])
def test_areas_of_many_boxes_are_those_of_each(others):
    corners = np.random.default_rng(0).uniform(-50, 550, (12 + others, 2))
    boxes = [Box(x, y, x + 40, y + 25) for x, y in corners.tolist()]
    some, rest = boxes[:12], boxes[12:]
    wider = [Box(b.left - 1.5, b.bottom - 1.5, b.right + 1.5, b.top + 1.5) for b in some]
    wanted = [sum(overlap(box, other) for other in rest) + 10 * outside(box, FRAME) for box in wider]
    assert _costs(_array(some), _array(rest), FRAME) == pytest.approx(wanted)
    areas = [[overlap(box, other) for other in boxes] for box in some]
    assert _overlaps(_array(some), _array(boxes)) == pytest.approx(np.array(areas))


def test_overlap_is_an_area():
    assert overlap(Box(0, 0, 2, 2), Box(1, 1, 5, 5)) == 1
    assert overlap(Box(0, 0, 2, 2), Box(2, 0, 3, 2)) == 0
    assert outside(Box(-1, 0, 1, 2), Box(0, 0, 9, 9)) == 2
