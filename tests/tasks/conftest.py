import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.data.detection import DetectionFolder, open_detection
from metaformer.data.folder import ImageFolder

Rectangles = Callable[..., DetectionFolder]
SIZES = [(40, 30), (64, 64), (1, 1), (33, 70), (50, 20), (31, 31), (90, 41)]
NOTHING = (3, 5)
"""Pictures without objects."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def folder(tmp_path: Path) -> ImageFolder:
    """Seven pictures of three classes, each of one grey that tells its class and number."""
    for label, (name, count) in enumerate((("ant", 3), ("bee", 2), ("cat", 2))):
        (tmp_path / "val" / name).mkdir(parents=True)
        for i in range(count):
            grey = np.full((8, 8, 3), 80 * label + 20 * i, dtype=np.uint8)
            Image.fromarray(grey).save(tmp_path / "val" / name / f"{name}{i}.png")
    return ImageFolder(tmp_path, "val")


def boxes_of(size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """An object of each class, left, top, width and height; they do not touch."""
    width, height = size
    if size == (1, 1):
        return [(0, 0, 1, 1)]
    return [
        (width // 10, 2, width // 3, height // 2),
        (width // 2, height // 3, width // 3, height // 2),
    ]


@pytest.fixture
def rectangles(tmp_path: Path) -> Rectangles:
    """Write pictures with a red and a green rectangle, some with none, one of one pixel."""

    def put(classes: int = 2, nothing: Sequence[int] = NOTHING, **fields: Any) -> DetectionFolder:
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        (tmp_path / "val2017").mkdir()
        (tmp_path / "annotations").mkdir()
        for i, size in enumerate(SIZES):
            pixels = np.full((size[1], size[0], 3), (40, 40, 30 * i), np.uint8)
            images.append({"id": 100 - i, "file_name": f"{i}.png", "width": size[0], "height": size[1]})
            for label, box in enumerate([] if i in nothing else boxes_of(size)[:classes]):
                left, top, width, height = box
                right, bottom = left + width, top + height
                pixels[top:bottom, left:right, label] = 250
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": 100 - i,
                        "category_id": 5 + label,
                        "bbox": box,
                        "area": width * height,
                        "iscrowd": 0,
                        "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                        **fields,
                    }
                )
            Image.fromarray(pixels).save(tmp_path / "val2017" / f"{i}.png")
        categories = [{"id": 5, "name": "red"}, {"id": 6, "name": "green"}][:classes]
        document = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "annotations" / "instances_val2017.json").write_text(json.dumps(document))
        return open_detection(tmp_path, "val", masks=True)

    return put
