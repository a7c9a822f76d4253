import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as reference

from metaformer.data.rle import decode
from metaformer.tasks.detection import polygons
from metaformer.tasks.detection.polygons import polygons_mask

SIDES = st.integers(1, 30)
NUMBERS = st.one_of(
    st.integers(-10, 400).map(lambda tenths: tenths / 10),
    st.floats(-2, 40, allow_nan=False),
    st.integers(-2, 40).map(float),
)
RINGS = st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=12), min_size=1, max_size=3)


def theirs(rings: list[list[tuple[float, float]]], size: tuple[int, int]) -> np.ndarray:
    flat = [[number for point in ring for number in point] for ring in rings]
    return decode(reference.merge(reference.frPyObjects(flat, *size)))


def ours(rings: list[list[tuple[float, float]]], size: tuple[int, int]) -> np.ndarray:
    return polygons_mask([np.array(ring, dtype=np.float64) for ring in rings], size)


@given(RINGS, SIDES, SIDES)
def test_masks_are_those_of_pycocotools(
    rings: list[list[tuple[float, float]]], height: int, width: int
) -> None:
    assert np.array_equal(ours(rings, (height, width)), theirs(rings, (height, width)))


@pytest.mark.parametrize("block", [1 << 20, 100])
def test_outlines_of_real_size_too(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygons, "_BLOCK", block)
    draw = np.random.RandomState(0)
    for _ in range(30):
        size = int(draw.randint(50, 500)), int(draw.randint(50, 700))
        rings = []
        for _ in range(draw.randint(1, 4)):
            corners = draw.rand(draw.randint(3, 80), 2) * [size[1] + 2, size[0] + 2] - 1
            rings.append([tuple(point) for point in corners.round(draw.randint(0, 4)).tolist()])
        assert np.array_equal(ours(rings, size), theirs(rings, size))
    square = [[(1.0, 1.0), (4.0, 1.0), (4.0, 3.0), (1.0, 3.0)]]
    assert ours(square, (5, 6)).sum() == 6 and ours(square, (5, 6))[1:3, 1:4].all()
