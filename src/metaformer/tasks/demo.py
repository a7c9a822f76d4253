"""`metaformer data demo`: a demo data set for every task, for machines that can download nothing."""

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from tqdm import tqdm

from metaformer.data.demo import (
    SPLITS,
    DemoFolder,
    DemoSize,
    DigitScenes,
    SceneGenerator,
    SceneObject,
    contact_sheet,
    encode,
)
from metaformer.data.rle import run_lengths
from metaformer.errors import DataError, OutputError
from metaformer.storage import as_path, read_json
from metaformer.tasks import TASKS

MARKER: Final = "demo.json"
OVERVIEW: Final = "overview.jpg"
"""Some images of each data set, a row each."""
_CLASSIFY, _SEGMENT, _DETECT, _MULTILABEL = 1, 2, 3, 4
"""Random stream of each task's scenes."""


def write_demo_data(
    root: str | Path,
    *,
    seed: int = 0,
    per_class: int | None = None,
    copies: int = 4,
    scenes: tuple[int, int] = (600, 150),
    progress: bool = True,
) -> dict[Path, int]:
    """Write each task's demo data set to `root/TASK`, and some of their images to `root/overview.jpg`.

    The same arguments give the same bytes.

    A fifth of the source digits of each class is used for validation only, in all of them. Files are written
    whole or not at all; running again mends what is missing or damaged and touches nothing else.

    Args:
        root: a new or empty folder, or one that this function wrote with the same arguments.
        seed: everything random is a function of it.
        per_class: source digits of each class, at least 5; all, about 180, when not given.
        copies: images per training digit of classification; validation digits are used once.
        scenes: training and validation images of the other tasks.
        progress: show bars on stderr.

    Returns:
        The data sets' folders, with how many images they hold.

    Raises:
        ConfigError: a number out of range.
        MissingPackage: scikit-learn is not installed.
        OutputError: the folder holds something else, or cannot be written to.
    """
    size, generator = DemoSize(copies, scenes), DigitScenes(seed, per_class)
    settings = {"format": 1, "seed": seed, "per_class": per_class, "copies": copies, "scenes": list(scenes)}
    return write_scenes(root, generator, size, settings, progress=progress)


def write_scenes(
    root: str | Path,
    generator: SceneGenerator,
    size: DemoSize,
    settings: dict[str, Any],
    *,
    progress: bool = True,
) -> dict[Path, int]:
    """Write a generator's scenes in the format of each task; see `write_demo_data`.

    Args:
        root: a new or empty folder, or one that this function wrote with the same settings.
        generator: makes the scenes.
        size: how many.
        settings: all that the files are a function of, as plain values.
        progress: show bars on stderr.

    Raises:
        OutputError: the folder holds something else, or cannot be written to.
    """
    root = as_path(root, "root", DataError, expand=True)
    images: dict[Path, int] = {}
    samples = []
    try:
        _claim(root, settings)
        for task, spec in TASKS.items():
            with tqdm(desc=f"demo data: {task}", unit="image", file=sys.stderr, disable=not progress) as bar:
                folder = DemoFolder(root / task, bar)
                spec.write_demo(folder, generator, size)
            images[folder.root] = folder.images
            samples.append(folder.samples)
        DemoFolder(root).add_file(OVERVIEW, encode(contact_sheet(samples), OVERVIEW))
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{error.filename or root}: cannot write demo data: {error.strerror}") from error
    return images


def _claim(root: Path, settings: dict[str, Any]) -> None:
    """Mark a folder as demo data of these settings.

    Raises:
        OutputError: it holds something else.
    """
    marker = root / MARKER
    if marker.is_file():
        try:
            found = read_json(marker)
        except DataError:
            found = "a damaged demo.json"
        if found != settings:
            raise OutputError(f"{root}: holds other demo data ({found}): choose another folder or delete it")
    elif root.exists() and not root.is_dir():
        raise OutputError(f"{root}: is a file: choose another folder")
    elif root.is_dir() and any(root.iterdir()):
        raise OutputError(f"{root}: holds files that are no demo data: choose a new or empty folder")
    else:
        DemoFolder(root).add_file(MARKER, (json.dumps(settings) + "\n").encode())


def write_class_folders(folder: DemoFolder, generator: SceneGenerator, size: DemoSize) -> None:
    """Image folders `train` and `val`: a folder for each class; 64×64 pixels, one object each."""
    for split in SPLITS:
        for source in sorted(generator.sources[split]):
            for copy in range(size.copies if split == "train" else 1):
                scene = generator.compose([source], 64, (40, 60), generator.random(_CLASSIFY, source, copy))
                label = generator.classes[generator.labels[source]]
                folder.add_image(f"{split}/{label}/{generator.kind}{source:04d}_{copy}.png", scene.image)


def write_label_csv(folder: DemoFolder, generator: SceneGenerator, size: DemoSize) -> None:
    """What is in a scene: SPLIT/NAME.jpg, and SPLIT.csv with the columns image and labels."""
    for split, count in zip(SPLITS, size.scenes, strict=True):
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["image", "labels"])
        for index, scene in enumerate(generator.scenes(split, count, _MULTILABEL), start=1):
            name = f"{index:06d}.jpg"
            folder.add_image(f"{split}/{name}", scene.image)
            rows.writerow([name, " ".join(sorted({generator.classes[one.label] for one in scene.objects}))])
        folder.add_file(f"{split}.csv", text.getvalue().encode())


def write_label_maps(folder: DemoFolder, generator: SceneGenerator, size: DemoSize) -> None:
    """Label maps in ADE20K's layout: 0 is background, the class with index k has number k + 1."""
    numbers = len(generator.classes) + 1
    pixels = np.zeros(numbers, dtype=np.int64)
    images = np.zeros((2, numbers), dtype=np.int64)  # split, number: how many images show it
    sources: dict[str, list[int]] = {}
    for row, (split, place) in enumerate(zip(SPLITS, ("training", "validation"), strict=True)):
        for index, scene in enumerate(generator.scenes(split, size.scenes[row], _SEGMENT), start=1):
            labels = np.zeros((scene.image.height, scene.image.width), dtype=np.uint8)
            for one in scene.objects:
                labels[one.mask] = one.label + 1
            histogram = np.bincount(labels.ravel(), minlength=numbers)
            pixels += histogram
            images[row] += histogram > 0
            name = f"ADE_{split}_{index:08d}"
            sources[name] = [one.source for one in scene.objects]
            folder.add_image(f"images/{place}/{name}.jpg", scene.image)
            folder.add_file(f"annotations/{place}/{name}.png", encode(Image.fromarray(labels), ".png"))
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    for number, name in enumerate(generator.classes, start=1):
        ratio = pixels[number] / pixels.sum()
        rows.append(f"{number}\t{ratio:.4f}\t{images[0, number]}\t{images[1, number]}\t0\t{name}")
    folder.add_file("objectInfo150.txt", ("\n".join(rows) + "\n").encode())
    folder.add_file("sources.json", json.dumps(sources).encode())


def write_coco_objects(folder: DemoFolder, generator: SceneGenerator, size: DemoSize) -> None:
    """Boxes and masks in COCO's layout: `train2017`, `val2017` and their annotations."""
    for split, count in zip(SPLITS, size.scenes, strict=True):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, scene in enumerate(generator.scenes(split, count, _DETECT), start=1):
            name, (width, height) = f"{index:012d}.jpg", scene.image.size
            images.append({"id": index, "file_name": name, "width": width, "height": height})
            for one in scene.objects:
                annotations.append({"id": len(annotations) + 1, "image_id": index, **_annotation(one)})
            folder.add_image(f"{split}2017/{name}", scene.image)
        document = {
            "info": {"description": generator.about},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": [
                {"id": number, "name": name, "supercategory": generator.kind}
                for number, name in enumerate(generator.classes, start=1)
            ],
        }
        folder.add_file(f"annotations/instances_{split}2017.json", json.dumps(document).encode())


def _annotation(one: SceneObject) -> dict[str, Any]:
    return {
        "category_id": one.label + 1,
        "bbox": one.box,
        "area": int(one.mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(one.mask.shape), "counts": dict(run_lengths(one.mask))[True]},
        "source": one.source,
    }
