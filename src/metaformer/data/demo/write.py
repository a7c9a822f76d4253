"""Demo data in the formats of ImageNet, ADE20K and COCO, made where nothing can be downloaded."""

import io
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from tqdm import tqdm

from metaformer.data.demo.digits import Digit, Material, Scene
from metaformer.data.rle import run_lengths
from metaformer.data.sampler import hash64
from metaformer.errors import ConfigError, OutputError

MARKER: Final = "demo.json"
_CLASSIFY, _SEGMENT, _DETECT = 1, 2, 3  # each set draws its own scenes
_SCENE_SIZE: Final = 128
_SPLITS: Final = ("train", "val")
File = tuple[str, bytes]


@dataclass(frozen=True)
class Demo:
    """Where the demo data lies."""

    classify: Path
    """Image folder: train and val, ten classes."""
    segment: Path
    """ADE20K's layout: images and annotations; 0 is background, digit d has number d + 1."""
    detect: Path
    """COCO's layout: train2017, val2017, annotations."""
    images: int
    """How many images the three hold."""


def write_demo(
    root: str | Path,
    seed: int = 0,
    *,
    per_class: int | None = None,
    copies: int = 4,
    scenes: tuple[int, int] = (600, 150),
    progress: bool = True,
) -> Demo:
    """Write the three demo data sets below `root`; the same arguments give the same bytes.

    A fifth of the source digits of each class is used for validation only, in all three. Files are written
    whole or not at all; running again mends what is missing or damaged and touches nothing else.

    Args:
        root: a new or empty folder, or one that this function wrote with the same arguments.
        seed: what everything random is a function of.
        per_class: source digits of each class, at least 5; all, about 180, when not given.
        copies: images per training digit in `classify`; validation digits are used once.
        scenes: training and validation images of `segment`, and of `detect`.
        progress: show a bar on stderr.

    Raises:
        MissingPackage: scikit-learn is not installed.
        OutputError: the folder holds something else, or cannot be written to.
    """
    if copies < 1 or min(scenes) < 1 or not 0 <= seed < 2**32:
        raise ConfigError(f"seed {seed}, copies {copies}, scenes {scenes}: counts start at 1, seeds at 0")
    if per_class is not None and per_class < 5:
        raise ConfigError(f"per_class {per_class}: a fifth is held out, so it must be at least 5")
    root = Path(root).expanduser()
    settings = {"format": 1, "seed": seed, "per_class": per_class, "copies": copies, "scenes": list(scenes)}
    material = Material(seed, per_class)
    images = copies * len(material.sources["train"]) + len(material.sources["val"]) + 2 * sum(scenes)
    try:
        _claim(root, settings)
        with tqdm(total=images, desc="demo data", unit="image", file=sys.stderr, disable=not progress) as bar:
            for name, data in chain(
                _classify(material, seed, copies),
                _segment(material, seed, scenes),
                _detect(material, seed, scenes),
            ):
                _put(root / name, data)
                bar.update(name.endswith((".jpg", ".png")) and "annotations" not in name)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{error.filename or root}: cannot write demo data: {error.strerror}") from error
    return Demo(root / "classify", root / "segment", root / "detect", images)


def _claim(root: Path, settings: dict[str, Any]) -> None:
    marker = root / MARKER
    if marker.is_file():
        try:
            found = json.loads(marker.read_text(encoding="utf-8"))
        except ValueError:
            found = "a damaged demo.json"
        if found != settings:
            raise OutputError(f"{root}: holds other demo data ({found}): choose another folder or delete it")
        return
    if root.exists() and not root.is_dir():
        raise OutputError(f"{root}: is a file: choose another folder")
    if root.is_dir() and any(root.iterdir()):
        raise OutputError(f"{root}: holds files that are no demo data: choose a new or empty folder")
    _put(marker, (json.dumps(settings) + "\n").encode())


def _put(path: Path, data: bytes) -> None:
    """Write a file whole; leave one that is right already alone."""
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    draft.replace(path)


def _classify(material: Material, seed: int, copies: int) -> Iterator[File]:
    for split in _SPLITS:
        for source in sorted(material.sources[split]):
            for copy in range(copies if split == "train" else 1):
                draw = np.random.RandomState(hash64(seed, _CLASSIFY, source, copy) & 0xFFFFFFFF)
                scene = material.scene([source], 64, (40, 60), draw)
                name = f"digit{source:04d}_{copy}.png"
                yield f"classify/{split}/{material.labels[source]}/{name}", _encode(scene.image, "PNG")


def _scenes(material: Material, task: int, seed: int, split: str, count: int) -> Iterator[Scene]:
    for index in range(count):
        draw = np.random.RandomState(hash64(seed, task, _SPLITS.index(split), index) & 0xFFFFFFFF)
        sources = draw.choice(material.sources[split], draw.randint(1, 6), replace=False).tolist()
        yield material.scene(sources, _SCENE_SIZE, (28, 52), draw)


def _segment(material: Material, seed: int, scenes: tuple[int, int]) -> Iterator[File]:
    pixels = np.zeros(11, dtype=np.int64)
    holding = np.zeros((2, 11), dtype=np.int64)
    used: dict[str, list[int]] = {}
    for part, (split, folder, count) in enumerate(
        zip(_SPLITS, ("training", "validation"), scenes, strict=True)
    ):
        for index, scene in enumerate(_scenes(material, _SEGMENT, seed, split, count), start=1):
            labels = np.zeros((_SCENE_SIZE, _SCENE_SIZE), dtype=np.uint8)
            for digit in scene.digits:
                labels[digit.mask] = digit.label + 1
            histogram = np.bincount(labels.ravel(), minlength=11)
            pixels += histogram
            holding[part] += histogram > 0
            name = f"ADE_{split}_{index:08d}"
            used[name] = [digit.source for digit in scene.digits]
            yield f"segment/images/{folder}/{name}.jpg", _encode(scene.image, "JPEG")
            yield f"segment/annotations/{folder}/{name}.png", _encode(Image.fromarray(labels), "PNG")
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName"]
    for label in range(1, 11):
        ratio = pixels[label] / pixels.sum()
        rows.append(f"{label}\t{ratio:.4f}\t{holding[0, label]}\t{holding[1, label]}\t0\t{label - 1}")
    yield "segment/objectInfo150.txt", ("\n".join(rows) + "\n").encode()
    yield "segment/sources.json", json.dumps(used).encode()


def _detect(material: Material, seed: int, scenes: tuple[int, int]) -> Iterator[File]:
    for split, count in zip(_SPLITS, scenes, strict=True):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index, scene in enumerate(_scenes(material, _DETECT, seed, split, count), start=1):
            name = f"{index:012d}.jpg"
            images.append({"id": index, "file_name": name, "width": _SCENE_SIZE, "height": _SCENE_SIZE})
            for digit in scene.digits:
                annotations.append({"id": len(annotations) + 1, "image_id": index, **_annotation(digit)})
            yield f"detect/{split}2017/{name}", _encode(scene.image, "JPEG")
        categories = [{"id": d + 1, "name": str(d), "supercategory": "digit"} for d in range(10)]
        document = {
            "info": {"description": "Handwritten digits on photographs (scikit-learn's samples)"},
            "licenses": [],
            "images": images,
            "annotations": annotations,
            "categories": categories,
        }
        yield f"detect/annotations/instances_{split}2017.json", json.dumps(document).encode()


def _annotation(digit: Digit) -> dict[str, Any]:
    rows, columns = np.flatnonzero(digit.mask.any(1)), np.flatnonzero(digit.mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return {
        "category_id": digit.label + 1,
        "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
        "area": int(digit.mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(digit.mask.shape), "counts": dict(run_lengths(digit.mask))[True]},
        "source": digit.source,
    }


def _encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {"compress_level": 1}))
    return buffer.getvalue()
