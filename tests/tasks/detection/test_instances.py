import pickle
from array import array

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from metaformer.tasks.detection.instances import InstanceTable, Row
from metaformer.tasks.detection.polygons import polygons_mask

SIZES = np.array([(9, 7), (5, 6), (4, 4)], dtype=np.int32)
SQUARE = array("d", [1, 1, 3, 1, 3, 3, 1, 3])


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["", "polygons", "runs"]), st.booleans())))
def test_what_goes_in_comes_out_by_image_in_order(given_rows: list[tuple[int, str, bool]]) -> None:
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
            assert (instance.id, instance.label, instance.crowd) == (
                100 + number,
                number % 4,
                given_rows[number][2],
            )
            assert (instance.area, instance.box) == (1.5, (0.5, 1.0, 2.5, 3.5))
            match given_rows[number][1]:
                case "polygons":
                    assert instance.segmentation == [SQUARE.tolist(), SQUARE[2:].tolist()]
                    parts = [np.array(ring).reshape(-1, 2) for ring in instance.segmentation]
                    assert np.array_equal(mask, polygons_mask(parts, (height, width)))
                case "runs":
                    counts = [width * height - 1, 1]
                    assert instance.segmentation == {"size": [height, width], "counts": counts}
                    assert mask.sum() == 1 and mask[-1, -1]
                case _:
                    assert instance.segmentation is None and not mask.any()


def test_rows_are_let_go() -> None:
    rows: list[Row | None] = [Row(0, 1, 0, (0, 0, 1, 1), False, 1.0)]
    InstanceTable(rows, SIZES)
    assert rows == [None]


def test_boxes_are_cut_at_the_edges() -> None:
    rows: list[Row | None] = [Row(1, 1, 0, (-1, -0.5, 7, 7.5), False, 1.0)]
    table = InstanceTable(rows, SIZES)
    assert table.corners(np.array([0])).tolist() == [[0, 0, 5, 6]]
    assert table.boxes.tolist() == [[-1, -0.5, 7, 7.5]]
