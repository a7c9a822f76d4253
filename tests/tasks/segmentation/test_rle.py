import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from metaformer.tasks.outputs import Prediction
from metaformer.tasks.segmentation.write_coco import rle_sink


def test_each_class_of_each_image_is_a_mask(seen: Callable[..., Prediction], tmp_path: Path) -> None:
    with rle_sink(tmp_path) as add:
        add("x", seen("x.jpg"))
        add("y", seen("y.jpg"))
    document = json.loads((tmp_path / "rle.json").read_text(encoding="utf-8"))
    found = document["annotations"]
    assert [(row["id"], row["image_id"], row["category_id"]) for row in found] == [
        (1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 2, 1), (5, 2, 2), (6, 2, 3),
    ]  # fmt: skip
    assert found[1] == {
        "id": 2,
        "image_id": 1,
        "category_id": 2,
        "segmentation": {"size": [8, 12], "counts": [32, 32, 32]},
        "area": 32,
        "bbox": [4, 0, 4, 8],
        "iscrowd": 0,
    }
    assert found[0]["segmentation"]["counts"] == [0, 32, 64]
    turns = found[2]["segmentation"]["counts"]
    mask = np.repeat(np.arange(len(turns)) % 2, turns).reshape(8, 12, order="F")
    assert mask.sum() == 32 and mask[:, 8:].all()
