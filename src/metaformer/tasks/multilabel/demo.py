"""Demo data set of multi-label classification: which digits are in a scene."""

import csv
import io
from typing import Final

from metaformer.data.demo import SPLITS, DemoFolder, DemoSize, SceneGenerator

_STREAM: Final = 4


def write_demo(folder: DemoFolder, generator: SceneGenerator, size: DemoSize) -> None:
    """Write SPLIT/NAME.jpg and SPLIT.csv with the columns image and labels."""
    for split, count in zip(SPLITS, size.scenes, strict=True):
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["image", "labels"])
        for index, scene in enumerate(generator.scenes(split, count, _STREAM), start=1):
            name = f"{index:06d}.jpg"
            folder.add_image(f"{split}/{name}", scene.image)
            rows.writerow([name, " ".join(sorted({str(digit.label) for digit in scene.digits}))])
        folder.add_file(f"{split}.csv", text.getvalue().encode())
