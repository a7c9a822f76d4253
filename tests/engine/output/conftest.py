from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metaformer.engine.output.sink import Seen
from metaformer.ops.coco_rle import encode
from metaformer.tasks.detect_results import DetectedObjects


@pytest.fixture
def spotted(tmp_path: Path) -> Callable[..., Seen]:
    """Make a grey picture file with two objects in it, left and right, masks their upper halves."""

    def make(
        name: str = "a/x.jpg", size: tuple[int, int] = (400, 300), masks: bool = True, **fields: Any
    ) -> Seen:
        file, (width, height) = tmp_path / "photos" / name, size
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", size, (100, 100, 100))
        picture.save(file)
        boxes = (
            np.array([[0.1, 0.2, 0.4, 0.8], [0.6, 0.2, 0.9, 0.8]]) * [width, height, width, height]
        ).round()
        drawn = np.zeros((2, height, width), bool)
        for place, (left, top, right, bottom) in zip(drawn, boxes.astype(int).tolist(), strict=True):
            place[top : (top + bottom) // 2, left:right] = True
        objects = DetectedObjects(
            str(file),
            size,
            boxes.astype(np.float32),
            np.array([0.875, 0.5], np.float32),
            np.array([1, 0]),
            ("é, b", "<i>"),
            ((200, 40, 40), (40, 40, 200)),
            tuple(encode(place) for place in drawn) if masks else None,
        )
        return Seen(picture, objects, **fields)

    return make
