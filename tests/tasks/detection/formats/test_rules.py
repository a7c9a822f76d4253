import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaformer.tasks.detection.formats.rules import (
    LEAST,
    SLACK,
    BadAnnotation,
    check_box,
    check_polygon,
    check_size,
    is_number,
)

ANY = st.floats(-20, 40) | st.floats()
SIZES = st.tuples(st.integers(1, 20), st.integers(1, 20))


@given(st.tuples(ANY, ANY, ANY, ANY), SIZES)
def test_boxes_that_pass_have_area_within_the_image(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> None:
    left, top, width, height = box
    try:
        check_box(box, size)
    except BadAnnotation as bad:
        assert bad.kind == "box" and bad.reason
        inside = min(left, top) >= 0 and left + width <= size[0] and top + height <= size[1]
        assert not (inside and width >= 2 * LEAST and height >= 2 * LEAST)
    else:
        assert min(left + width, size[0]) - max(left, 0) >= LEAST
        assert min(top + height, size[1]) - max(top, 0) >= LEAST
        assert min(left, top) >= -SLACK
        assert left + width <= size[0] + SLACK and top + height <= size[1] + SLACK


@given(st.lists(ANY, max_size=9), SIZES)
def test_polygons_that_pass_are_three_points_near_the_image(
    numbers: list[float], size: tuple[int, int]
) -> None:
    try:
        check_polygon(numbers, size)
    except BadAnnotation as bad:
        assert bad.kind == "segmentation" and bad.reason
    else:
        assert len(numbers) >= 6 and len(numbers) % 2 == 0
        assert all(-SLACK <= number <= side + SLACK for number, side in zip(numbers, size * 9, strict=False))


@pytest.mark.parametrize("size", [(0, 5), (5, -1), ("5", 5), (True, 5), (5, math.nan), (5, 5.5), (None, 5)])
def test_sizes_are_whole_numbers_above_zero(size: tuple[object, object]) -> None:
    with pytest.raises(BadAnnotation):
        check_size(*size)
    assert check_size(5.0, 7) == (5, 7)
    with pytest.raises(BadAnnotation, match="allowed"):
        check_size(10_000, 5_001)


def test_truth_values_are_no_numbers() -> None:
    assert [is_number(value) for value in (1, 1.5, True, "1", None)] == [True, True, False, False, False]
