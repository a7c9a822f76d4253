"""Packed objects, and masks of polygons, compared with pycocotools."""

import pickle
from array import array

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as reference

from metaformer.data.rle import decode
from metaformer.tasks.detection import instances
from metaformer.tasks.detection.instances import InstanceTable, Row, polygons_mask, segmentation_mask

SIZES = np.array([(9, 7), (5, 6), (4, 4)], dtype=np.int32)
SQUARE = array("d", [1, 1, 3, 1, 3, 3, 1, 3])


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["", "polygons", "runs"]), st.booleans())))
def test_objects_are_packed_by_image_in_order(given_rows: list[tuple[int, str, bool]]) -> None:
    rows: list[Row | None] = []
    for number, (image, form, crowd) in enumerate(given_rows):
        width, height = SIZES[image].tolist()
        polygons = [SQUARE, SQUARE[2:]] if form == "polygons" else ()
        runs = np.array([width * height - 1, 1]) if form == "runs" else None
        box = (0.5, 1.0, 2.0, 2.5)
        rows.append(Row(image, 100 + number, number % 4, box, crowd, 1.5, polygons, runs))
    whole = InstanceTable(list(rows), SIZES)
    table = pickle.loads(pickle.dumps(whole))
    assert len(table) == len(rows)
    assert table.outlined.tolist() == [bool(form) for _, form, _ in given_rows]
    for image, (width, height) in enumerate(SIZES.tolist()):
        mine = [number for number, row in enumerate(given_rows) if row[0] == image]
        assert table.of(image).tolist() == mine
        masks = table.masks(table.of(image), (height, width))
        assert masks.shape == (len(mine), height, width)
        for number, mask in zip(mine, masks, strict=True):
            instance = table.instance(number)
            assert (instance.id, instance.label) == (100 + number, number % 4)
            assert instance.crowd == given_rows[number][2]
            assert (instance.area, instance.box) == (1.5, (0.5, 1.0, 2.5, 3.5))
            match given_rows[number][1]:
                case "polygons":
                    assert instance.segmentation == [SQUARE.tolist(), SQUARE[2:].tolist()]
                case "runs":
                    counts = [width * height - 1, 1]
                    assert instance.segmentation == {"size": [height, width], "counts": counts}
                    assert mask.sum() == 1 and mask[-1, -1]
                case _:
                    assert instance.segmentation is None and not mask.any()
            if instance.segmentation is not None:
                assert np.array_equal(mask, segmentation_mask(instance.segmentation, (height, width)))


@given(st.lists(st.integers(0, 2)), st.tuples(st.booleans(), st.booleans(), st.booleans()))
def test_a_part_holds_the_objects_of_its_images(images: list[int], wanted: tuple[bool, ...]) -> None:
    rows: list[Row | None] = [
        Row(image, number, 0, (0, 0, 1, 1), False, 1.0, [SQUARE, SQUARE] if number % 2 else [])
        for number, image in enumerate(images)
    ]
    whole = InstanceTable(rows, SIZES)
    part = whole.subset(np.array(wanted))
    kept = [image for image, there in enumerate(wanted) if there]
    for new, old in enumerate(kept):
        assert [part.instance(row) for row in part.of(new)] == [whole.instance(row) for row in whole.of(old)]
    assert len(part) == sum(image in kept for image in images)


def test_rows_are_released() -> None:
    rows: list[Row | None] = [Row(0, 1, 0, (0, 0, 1, 1), False, 1.0)]
    InstanceTable(rows, SIZES)
    assert rows == [None]


def test_boxes_are_clipped() -> None:
    rows: list[Row | None] = [Row(1, 1, 0, (-1, -0.5, 7, 7.5), False, 1.0)]
    table = InstanceTable(rows, SIZES)
    assert table.corners(np.array([0])).tolist() == [[0, 0, 5, 6]]
    assert table.boxes.tolist() == [[-1, -0.5, 7, 7.5]]


SIDE = st.integers(1, 30)
NUMBERS = st.one_of(
    st.integers(-10, 400).map(lambda tenths: tenths / 10),
    st.floats(-2, 40, allow_nan=False),
    st.integers(-2, 40).map(float),
)
POLYGONS = st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=12), min_size=1, max_size=3)


def theirs(polygons: list[list[tuple[float, float]]], size: tuple[int, int]) -> np.ndarray:
    flat = [[number for point in polygon for number in point] for polygon in polygons]
    return decode(reference.merge(reference.frPyObjects(flat, *size)))


def ours(polygons: list[list[tuple[float, float]]], size: tuple[int, int]) -> np.ndarray:
    return polygons_mask([np.array(polygon, dtype=np.float64) for polygon in polygons], size)


@given(POLYGONS, SIDE, SIDE)
def test_masks_are_those_of_pycocotools(
    polygons: list[list[tuple[float, float]]], height: int, width: int
) -> None:
    assert np.array_equal(ours(polygons, (height, width)), theirs(polygons, (height, width)))


@pytest.mark.parametrize("block", [1 << 20, 100])
def test_masks_of_large_polygons_too(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "_BLOCK", block)
    draw = np.random.RandomState(0)
    for _ in range(30):
        size = int(draw.randint(50, 500)), int(draw.randint(50, 700))
        polygons = []
        for _ in range(draw.randint(1, 4)):
            corners = draw.rand(draw.randint(3, 80), 2) * [size[1] + 2, size[0] + 2] - 1
            polygons.append([tuple(point) for point in corners.round(draw.randint(0, 4)).tolist()])
        assert np.array_equal(ours(polygons, size), theirs(polygons, size))
    square = [[(1.0, 1.0), (4.0, 1.0), (4.0, 3.0), (1.0, 3.0)]]
    assert ours(square, (5, 6)).sum() == 6 and ours(square, (5, 6))[1:3, 1:4].all()
