"""Segmentations in COCO's panoptic format: PNGs of segment numbers, and one JSON file that explains them."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metaformer.data.rle import run_lengths
from metaformer.storage import whole_bytes, whole_file
from metaformer.tasks.outputs import ImageNumbers, Prediction, Writer
from metaformer.tasks.segmentation.results import Segmentation


@contextmanager
def panoptic_sink(place: Path) -> Iterator[Writer[Segmentation]]:
    """Write PLACE/panoptic/NAME.png as results come, and PLACE/panoptic.json at the end.

    Raises:
        OutputError: they cannot be written.
    """
    with coco_file(place / "panoptic.json") as file:

        def add(name: str, seen: Prediction[Segmentation]) -> None:
            number = file.add_image(name, seen)
            with whole_bytes(place / "panoptic" / f"{name}.png") as stream:
                segment_image(seen.result).save(stream, "PNG")
            segments = segments_info(seen.result)
            file.add([{"image_id": number, "file_name": f"{name}.png", "segments_info": segments}])

        yield add


def segment_image(result: Segmentation) -> Image.Image:
    """The numbers of the segments as colors: red + 256·green + 65536·blue; each class is one segment."""
    numbers = np.arange(1, len(result.classes) + 1)
    colors = np.stack([numbers >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
    return Image.fromarray(colors[result.label_map])


def segments_info(result: Segmentation) -> list[dict[str, Any]]:
    """What each segment is: its number and its category, both counted from 1, area and box."""
    return [
        {
            "id": segment.index + 1,
            "category_id": segment.index + 1,
            "area": segment.area,
            "bbox": list(segment.box),
            "iscrowd": 0,
        }
        for segment in find_segments(result.label_map, len(result.classes))
    ]


@contextmanager
def coco_file(path: Path) -> Iterator["CocoFile"]:
    """Open a file for annotations; it appears when all are in it.

    Raises:
        OutputError: it cannot be written.
    """
    with whole_file(path) as stream:
        file = CocoFile(stream)
        yield file
        file.finish()


class CocoFile:
    """Annotations as they come; then the images and the classes that they are of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._between = stream, "\n"
        self._numbers, self._images = ImageNumbers(), list[dict[str, Any]]()
        self._categories: list[dict[str, Any]] = []
        stream.write('{"annotations": [')

    def add_image(self, name: str, seen: Prediction[Segmentation]) -> int:
        """List an image, and give its number."""
        number = self._numbers.of(name)
        width, height = seen.result.size
        entry = {"id": number, "file_name": seen.result.path, "width": width, "height": height}
        self._images.append(entry if seen.frame is None else {**entry, "frame": seen.frame})
        self._categories = self._categories or categories(seen.result)
        return number

    def add(self, annotations: Iterable[dict[str, Any]]) -> None:
        """Write annotations."""
        for annotation in annotations:
            self._stream.write(self._between + json.dumps(annotation, ensure_ascii=False))
            self._between = ",\n"

    def finish(self) -> None:
        """Write the images and the classes, and close the object."""
        rest = {"images": self._images, "categories": self._categories}
        self._stream.write("\n],\n" + json.dumps(rest, ensure_ascii=False)[1:] + "\n")


def categories(result: Segmentation) -> list[dict[str, Any]]:
    """The classes as COCO's categories; numbers begin at 1, since 0 is for pixels of no class."""
    named = zip(result.classes, result.palette, strict=True)
    return [
        {"id": number, "name": name, "supercategory": "", "isthing": 0, "color": list(color)}
        for number, (name, color) in enumerate(named, start=1)
    ]


@contextmanager
def rle_sink(place: Path) -> Iterator[Writer[Segmentation]]:
    """Write PLACE/rle.json, which pycocotools opens, when all results are in.

    Raises:
        OutputError: it cannot be written.
    """
    with coco_file(place / "rle.json") as file:
        numbers = count(1)

        def add(name: str, seen: Prediction[Segmentation]) -> None:
            image = file.add_image(name, seen)
            file.add({"id": next(numbers), "image_id": image, **mask} for mask in masks(seen.result))

        yield add


def masks(result: Segmentation) -> Iterator[dict[str, Any]]:
    """Each class that an image holds: category (counted from 1), run lengths, area and box."""
    size = list(result.label_map.shape)
    segments = find_segments(result.label_map, len(result.classes))
    for segment, (index, counts) in zip(segments, run_lengths(result.label_map), strict=True):
        yield {
            "category_id": index + 1,
            "segmentation": {"size": size, "counts": counts},
            "area": segment.area,
            "bbox": list(segment.box),
            "iscrowd": 0,
        }


_BAND = 256
"""Rows looked at together: what is needed beside a large label map stays small."""


@dataclass(frozen=True)
class Segment:
    """All pixels of one class in an image."""

    index: int
    """The class."""
    area: int
    """Pixels."""
    box: tuple[int, int, int, int]
    """Left, top, width and height of the smallest box around them."""


def find_segments(label_map: NDArray[np.integer[Any]], classes: int) -> list[Segment]:
    """The classes that a label map (H, W) holds, in the order of their numbers."""
    height, width = label_map.shape
    in_row = np.zeros((height, classes), dtype=bool)
    in_column = np.zeros((width, classes), dtype=bool)
    area = np.zeros(classes, dtype=np.int64)
    across = np.arange(width)
    for top in range(0, height, _BAND):
        band = label_map[top : top + _BAND].astype(np.int64)
        area += np.bincount(band.ravel(), minlength=classes)
        in_row[np.arange(top, top + len(band))[:, None], band] = True
        in_column[across, band] = True
    found = []
    for index in np.flatnonzero(area).tolist():
        (left, wide), (top, high) = _span(in_column[:, index]), _span(in_row[:, index])
        found.append(Segment(index, int(area[index]), (left, top, wide, high)))
    return found


def _span(marks: NDArray[np.bool_]) -> tuple[int, int]:
    """Where the first mark is, and how far it is to the last, both counted."""
    places = np.flatnonzero(marks)
    return int(places[0]), int(places[-1] - places[0]) + 1
