"""Demo data set of detection: boxes and masks of digits in COCO's layout."""

import json
from typing import Any, Final

from metaformer.data.demo import SPLITS, DemoFolder, DemoSize, Digit, SceneGenerator
from metaformer.data.rle import run_lengths

_STREAM: Final = 3


def write_demo(folder: DemoFolder, generator: SceneGenerator, size: DemoSize) -> None:
    """Write `train2017`, `val2017` and their annotations."""
    for split, count in zip(SPLITS, size.scenes, strict=True):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, scene in enumerate(generator.scenes(split, count, _STREAM), start=1):
            name, (width, height) = f"{index:012d}.jpg", scene.image.size
            images.append({"id": index, "file_name": name, "width": width, "height": height})
            for digit in scene.digits:
                annotations.append({"id": len(annotations) + 1, "image_id": index, **_annotation(digit)})
            folder.add_image(f"{split}2017/{name}", scene.image)
        document = {
            "info": {"description": "Handwritten digits on photographs (scikit-learn's samples)"},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [{"id": d + 1, "name": str(d), "supercategory": "digit"} for d in range(10)],
        }
        folder.add_file(f"annotations/instances_{split}2017.json", json.dumps(document).encode())


def _annotation(digit: Digit) -> dict[str, Any]:
    return {
        "category_id": digit.label + 1,
        "bbox": digit.box,
        "area": int(digit.mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(digit.mask.shape), "counts": dict(run_lengths(digit.mask))[True]},
        "source": digit.source,
    }
