import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from metaformer.tasks.outputs import Prediction
from metaformer.tasks.segmentation.results import Segmentation
from metaformer.tasks.segmentation.write_coco import panoptic_sink, segment_image


def test_segments_have_colors_areas_and_boxes(seen: Callable[..., Prediction], tmp_path: Path) -> None:
    with panoptic_sink(tmp_path / "out") as add:
        add("x", seen("x.jpg"))
        add("y", seen("y.jpg", size=(3, 2)))
        assert not (tmp_path / "out" / "panoptic.json").exists()
    document = json.loads((tmp_path / "out" / "panoptic.json").read_text(encoding="utf-8"))
    first = document["annotations"][0]
    assert (first["image_id"], first["file_name"]) == (1, "x.png")
    assert first["segments_info"][2] == {
        "id": 3, "category_id": 3, "area": 32, "bbox": [8, 0, 4, 8], "iscrowd": 0,
    }  # fmt: skip
    assert [row["id"] for row in document["images"]] == [1, 2] and len(document["categories"]) == 3
    colors = np.asarray(Image.open(tmp_path / "out" / "panoptic" / "x.png")).astype(int)
    numbers = colors @ [1, 256, 65536]
    assert numbers.shape == (8, 12) and numbers[0].tolist() == [1] * 4 + [2] * 4 + [3] * 4


def test_numbers_beyond_255_go_on_in_the_next_color() -> None:
    classes = tuple(map(str, range(300)))
    result = Segmentation("", np.array([[254, 255, 299]], np.uint16), classes, ((1, 2, 3),) * 300)
    assert np.asarray(segment_image(result))[0].tolist() == [[255, 0, 0], [0, 1, 0], [44, 1, 0]]
