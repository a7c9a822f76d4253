import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metaformer.data.demo import SPLITS


def coco(demo: Path, split: str) -> dict[str, list[dict[str, Any]]]:
    return json.loads((demo / f"detect/annotations/instances_{split}2017.json").read_text())


def decode(counts: list[int], size: list[int]) -> np.ndarray:
    values = np.arange(len(counts)) % 2
    return np.repeat(values, counts).reshape(size, order="F").astype(bool)


@pytest.mark.parametrize("split", SPLITS)
def test_valid_coco(demo: Path, split: str) -> None:
    document = coco(demo, split)
    images = {image["id"]: image for image in document["images"]}
    files = sorted((demo / f"detect/{split}2017").iterdir())
    assert [image["file_name"] for image in images.values()] == [f.name for f in files]
    assert [c["id"] for c in document["categories"]] == list(range(1, 11))
    assert [a["id"] for a in document["annotations"]] == list(range(1, len(document["annotations"]) + 1))
    assert {a["image_id"] for a in document["annotations"]} == set(images)
    covered = {i: np.zeros((128, 128), int) for i in images}
    for annotation in document["annotations"]:
        segmentation = annotation["segmentation"]
        assert sum(segmentation["counts"]) == 128 * 128 and segmentation["size"] == [128, 128]
        mask = decode(segmentation["counts"], segmentation["size"])
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, width, height = annotation["bbox"]
        assert (x, y, x + width - 1, y + height - 1) == (columns[0], rows[0], columns[-1], rows[-1])
        assert annotation["area"] == mask.sum() > 50
        assert annotation["iscrowd"] == 0 and 1 <= annotation["category_id"] <= 10
        covered[annotation["image_id"]] += mask
    for image, file in zip(images.values(), files, strict=True):
        assert covered[image["id"]].max() == 1
        assert 1 <= sum(a["image_id"] == image["id"] for a in document["annotations"]) <= 5
        with Image.open(file) as opened:
            assert opened.size == (image["width"], image["height"]) == (128, 128)


def test_masks_lie_on_the_digits(demo: Path) -> None:
    for annotation in coco(demo, "train")["annotations"]:
        with Image.open(demo / f"detect/train2017/{annotation['image_id']:012d}.jpg") as opened:
            gray = np.asarray(opened.convert("L")).astype(float)
        x, y, width, height = annotation["bbox"]
        inside = decode(annotation["segmentation"]["counts"], [128, 128])[y : y + height, x : x + width]
        box = gray[y : y + height, x : x + width]
        assert np.quantile(box[inside], 0.75) > np.median(box[~inside]) + 20
