from typing import Any

import pytest

from metaformer.errors import DataError
from metaformer.tasks.detection.metrics import GroundTruth

SQUARE = [[2, 2, 6, 2, 6, 6, 2, 6]]


def document(**fields: Any) -> dict[str, Any]:
    annotation = {"id": 30, "image_id": 70, "category_id": 5, "bbox": [2, 2, 4, 4], "area": 16, "iscrowd": 0}
    return {
        "images": [{"id": 2**60, "width": 9, "height": 8}, {"id": 70, "width": 10, "height": 8}],
        "annotations": [{**annotation, "segmentation": SQUARE, **fields}, {**annotation, "iscrowd": 1}],
        "categories": [{"id": 5, "name": "bee"}, {"id": 1, "name": "ant"}],
    }


def test_everything_is_numbered_anew() -> None:
    truth = GroundTruth(document())
    assert truth.numbers == {70: 1, 2**60: 2} and truth.sizes[70] == (8, 10)
    assert truth.names == ("bee", "ant") and truth.counts == [1, 0]
    made = truth.document()
    assert made["annotations"][0] == {
        "id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 2, 4, 4], "area": 16, "iscrowd": 0,
    }  # fmt: skip
    assert [image["id"] for image in made["images"]] == [2, 1]
    made["annotations"][0]["rle"] = None
    assert "rle" not in truth.document()["annotations"][0]


def test_outlines_are_kept_where_they_are_needed() -> None:
    runs = {"size": [8, 10], "counts": [20, 60]}
    crowd = {**document()["annotations"][1], "segmentation": runs}
    truth = GroundTruth({**document(), "annotations": [document()["annotations"][0], crowd]}, masks=True)
    assert [found["segmentation"] for found in truth.objects] == [SQUARE, {"size": [8, 10], "counts": "d0l1"}]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"image_id": 9}, "there is no image 9"),
        ({"category_id": 2}, "there is no class 2"),
        ({"bbox": [1, 2, 3]}, "bbox is .* left, top, width and height"),
        ({"bbox": [1, 2, -3, 4]}, "bbox"),
        ({"bbox": [1, 2, float("nan"), 4]}, "bbox"),
        ({"bbox": "1234"}, "bbox"),
        ({"area": None}, "area is None"),
        ({"segmentation": None}, "neither polygons nor run lengths"),
        ({"segmentation": []}, "three corners"),
        ({"segmentation": [[1, 1, 2, 2]]}, "three corners"),
        ({"segmentation": [[1, 1, 2, 2, 3, 1e9]]}, "three corners"),
        ({"segmentation": [[1, 1, 2, 2, 3, float("inf")]]}, "three corners"),
        ({"segmentation": {"size": [8, 9], "counts": [72]}}, "run lengths of the image's size"),
        ({"segmentation": {"size": [8, 10], "counts": [79]}}, "segmentation: .*79"),
        ({"segmentation": {"size": [8, 10], "counts": [-1, 81]}}, "segmentation: "),
        ({"segmentation": {"size": [8, 10], "counts": "P"}}, "segmentation: "),
    ],
)
def test_what_cannot_be_is_told_with_its_id(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(DataError, match=f"^annotation 30: .*{told}"):
        GroundTruth(document(**fields), masks=True)


def test_ids_are_given_once() -> None:
    images = [{"id": 70, "width": 10, "height": 8}] * 2
    with pytest.raises(DataError, match="two images"):
        GroundTruth({**document(), "images": images})
    with pytest.raises(DataError, match="two classes"):
        GroundTruth({**document(), "categories": [{"id": 5, "name": "a"}] * 2})
    with pytest.raises(DataError, match="image 70: height None"):
        GroundTruth({**document(), "images": [{"id": 70, "width": 10}]})
