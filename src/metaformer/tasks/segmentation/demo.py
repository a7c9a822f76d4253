"""Demo data set of segmentation: label maps of digits in ADE20K's layout."""

import json
from typing import Final

import numpy as np
from PIL import Image

from metaformer.data.demo import SPLITS, DemoFolder, DemoSize, SceneGenerator, encode

_STREAM: Final = 2


def write_demo(folder: DemoFolder, generator: SceneGenerator, size: DemoSize) -> None:
    """Write images and label maps of scenes: 0 is background, digit d has number d + 1."""
    pixels = np.zeros(11, dtype=np.int64)
    images = np.zeros((2, 11), dtype=np.int64)  # split, number: how many images show it
    sources: dict[str, list[int]] = {}
    for row, (split, place) in enumerate(zip(SPLITS, ("training", "validation"), strict=True)):
        for index, scene in enumerate(generator.scenes(split, size.scenes[row], _STREAM), start=1):
            labels = np.zeros((scene.image.height, scene.image.width), dtype=np.uint8)
            for digit in scene.digits:
                labels[digit.mask] = digit.label + 1
            histogram = np.bincount(labels.ravel(), minlength=11)
            pixels += histogram
            images[row] += histogram > 0
            name = f"ADE_{split}_{index:08d}"
            sources[name] = [digit.source for digit in scene.digits]
            folder.add_image(f"images/{place}/{name}.jpg", scene.image)
            folder.add_file(f"annotations/{place}/{name}.png", encode(Image.fromarray(labels), ".png"))
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    for number in range(1, 11):
        ratio = pixels[number] / pixels.sum()
        rows.append(f"{number}\t{ratio:.4f}\t{images[0, number]}\t{images[1, number]}\t0\t{number - 1}")
    folder.add_file("objectInfo150.txt", ("\n".join(rows) + "\n").encode())
    folder.add_file("sources.json", json.dumps(sources).encode())
