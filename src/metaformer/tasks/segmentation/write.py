"""Writing of segmentations: label maps, COCO's panoptic and run-length formats, ADE20K's submission."""

import io
import json
import logging
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metaformer.data.rle import run_lengths
from metaformer.errors import ConfigError
from metaformer.storage import atomic_bytes, atomic_text
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.outputs import (
    LINES,
    ImageNumbers,
    Output,
    Prediction,
    Writer,
    drawn_output,
    json_line,
    jsonl_writer,
    write_outputs,
)
from metaformer.tasks.segmentation.draw import annotate
from metaformer.tasks.segmentation.results import Segmentation

MASKS = "masks"
MAX_PALETTE = 255
"""Classes that a PNG with a palette holds beside the value of ignored pixels."""
SUBMISSION = "submission_ade20k.zip"
SUBMISSION_CLASSES = 150
"""Classes of the ADE20K benchmark."""
_ROWS = 256
"""Rows of a label map that are searched at once, which bounds the memory."""
_log = logging.getLogger(__name__)


def write_segmentations(
    predictions: Iterable[Prediction[Segmentation]],
    out: str | Path | None,
    model: LoadedModel | None = None,
    *,
    draw: bool = False,
    panoptic: bool = False,
    rle: bool = False,
    submission: Literal["ade20k"] | None = None,
    fps: float | None = None,
) -> Iterator[str]:
    """Write label maps as PNGs and a line of JSON for each; yields the lines to print.

    Args:
        predictions: what is written.
        out: a folder; None yields JSON lines with the share of each class.
        model: the network.
        draw: also write the images with the classes drawn on them; those of videos are joined.
        panoptic: also write COCO's panoptic PNGs and JSON.
        rle: also write COCO's run-length encoding as JSON.
        submission: also write the zip that a benchmark's server takes.
        fps: with `draw`, frames a second: join all images to one animation.

    Raises:
        ConfigError: an option without `out`, or options that do not go together.
        OutputError: `out` cannot be written to, or the images lie in it.
    """
    if fps is not None and not draw:
        raise ConfigError("fps joins drawn images to an animation: ask for `draw` too")

    def outputs(place: Path) -> list[Output]:
        chosen = [Output(mask_writer(place), "label maps", place / LINES, place / MASKS)]
        if draw:
            chosen.append(drawn_output(place, _drawn, fps))
        if panoptic:
            file = place / "panoptic.json"
            chosen.append(Output(panoptic_writer(place), "panoptic images", file, place / "panoptic"))
        if rle:
            chosen.append(Output(rle_writer(place), "images in run lengths", place / "rle.json"))
        if submission:
            chosen.append(Output(ade20k_writer(place), "images for ADE20K's server", place / SUBMISSION))
        return chosen

    options = {"draw": draw, "panoptic": panoptic, "rle": rle, "submission": submission}
    return write_outputs(predictions, out, outputs, needs_folder=options)


def _drawn(prediction: Prediction[Segmentation], moving: bool) -> Image.Image:
    return annotate(prediction.pixels(), prediction.result, moving)


@contextmanager
def mask_writer(place: Path) -> Iterator[Writer[Segmentation]]:
    """Write PLACE/masks/NAME.png as predictions come, and PLACE/predictions.jsonl when all are in.

    Raises:
        OutputError: they cannot be written.
    """

    def line(name: str, prediction: Prediction[Segmentation]) -> dict[str, Any]:
        return {**json_line(prediction), "mask": f"{MASKS}/{name}.png"}

    with jsonl_writer(place / LINES, line) as write_line:

        def write(name: str, prediction: Prediction[Segmentation]) -> None:
            with atomic_bytes(place / MASKS / f"{name}.png") as stream:
                mask_image(prediction.result).save(stream, "PNG")
            write_line(name, prediction)

        yield write


def mask_image(result: Segmentation) -> Image.Image:
    """Label map with a palette, or as 16-bit gray for more than 255 classes."""
    if len(result.classes) <= MAX_PALETTE:
        return result.image()
    return Image.fromarray(result.label_map.astype(np.uint16))


@contextmanager
def ade20k_writer(place: Path) -> Iterator[Writer[Segmentation]]:
    """Write PLACE/submission_ade20k.zip when all predictions are in.

    Raises:
        ConfigError: more than 150 classes, a video frame, or two images of one name.
        OutputError: it cannot be written.
    """
    with atomic_bytes(place / SUBMISSION) as stream, zipfile.ZipFile(stream, "w") as archive:
        names: set[str] = set()

        def write(_: str, prediction: Prediction[Segmentation]) -> None:
            result, name = prediction.result, f"{Path(prediction.path).stem}.png"
            if not prediction.path or prediction.frame is not None:
                raise ConfigError("submission: takes image files only, whose names identify them")
            if name in names:
                raise ConfigError(f"submission: two images are called {name}; names must be unique")
            if not names and len(result.classes) != SUBMISSION_CLASSES:
                known = f"{SUBMISSION_CLASSES} classes, not {len(result.classes)}"
                _log.warning("submission: the benchmark has %s", known)
            names.add(name)
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o644 << 16  # permissions of the extracted file
            png = io.BytesIO()
            submission_image(result).save(png, "PNG")
            archive.writestr(entry, png.getvalue())

        yield write


def submission_image(result: Segmentation) -> Image.Image:
    """Label map as gray values that count classes from 1.

    Raises:
        ConfigError: more than 150 classes.
    """
    if len(result.classes) > SUBMISSION_CLASSES:
        raise ConfigError(
            f"submission: ADE20K has {SUBMISSION_CLASSES} classes, the network {len(result.classes)}"
        )
    return Image.fromarray((result.label_map + 1).astype(np.uint8))


class CocoFile:
    """COCO JSON that is written as annotations come; images and categories follow them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._separator = stream, "\n"
        self._numbers, self._images = ImageNumbers(), list[dict[str, Any]]()
        self._categories: list[dict[str, Any]] = []
        stream.write('{"annotations": [')

    def add_image(self, name: str, prediction: Prediction[Segmentation]) -> int:
        """Add an image; returns its id."""
        number, result = self._numbers.of(name), prediction.result
        width, height = result.size
        entry = {"id": number, "file_name": result.path, "width": width, "height": height}
        self._images.append(entry if prediction.frame is None else {**entry, "frame": prediction.frame})
        self._categories = self._categories or categories(result)
        return number

    def add(self, annotations: Iterable[dict[str, Any]]) -> None:
        """Write annotations."""
        for annotation in annotations:
            self._stream.write(self._separator + json.dumps(annotation, ensure_ascii=False))
            self._separator = ",\n"

    def finish(self) -> None:
        """Write images and categories."""
        rest = {"images": self._images, "categories": self._categories}
        self._stream.write("\n],\n" + json.dumps(rest, ensure_ascii=False)[1:] + "\n")


@contextmanager
def coco_file(path: Path) -> Iterator[CocoFile]:
    """Open a COCO file, which appears when it is complete.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_text(path) as stream:
        file = CocoFile(stream)
        yield file
        file.finish()


def categories(result: Segmentation) -> list[dict[str, Any]]:
    """COCO categories of the classes; ids count from 1, since 0 is for pixels of no class."""
    colors = zip(result.classes, result.palette, strict=True)
    return [
        {"id": number, "name": name, "supercategory": "", "isthing": 0, "color": list(color)}
        for number, (name, color) in enumerate(colors, start=1)
    ]


@contextmanager
def panoptic_writer(place: Path) -> Iterator[Writer[Segmentation]]:
    """Write PLACE/panoptic/NAME.png as predictions come, and PLACE/panoptic.json at the end.

    Raises:
        OutputError: they cannot be written.
    """
    with coco_file(place / "panoptic.json") as file:

        def write(name: str, prediction: Prediction[Segmentation]) -> None:
            image = file.add_image(name, prediction)
            with atomic_bytes(place / "panoptic" / f"{name}.png") as stream:
                panoptic_image(prediction.result).save(stream, "PNG")
            segments = [{"id": segment["category_id"], **segment} for segment in _segments(prediction.result)]
            file.add([{"image_id": image, "file_name": f"{name}.png", "segments_info": segments}])

        yield write


def panoptic_image(result: Segmentation) -> Image.Image:
    """Segment ids as colors: id = red + 256 · green + 65536 · blue; each class is one segment."""
    ids = np.arange(1, len(result.classes) + 1)
    colors = np.stack([ids >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
    return Image.fromarray(colors[result.label_map])


@contextmanager
def rle_writer(place: Path) -> Iterator[Writer[Segmentation]]:
    """Write PLACE/rle.json, which pycocotools opens, when all predictions are in.

    Raises:
        OutputError: it cannot be written.
    """
    with coco_file(place / "rle.json") as file:
        ids = count(1)

        def write(name: str, prediction: Prediction[Segmentation]) -> None:
            image, result = file.add_image(name, prediction), prediction.result
            size = list(result.label_map.shape)
            masks = zip(_segments(result), run_lengths(result.label_map), strict=True)
            file.add(
                {
                    "id": next(ids),
                    "image_id": image,
                    "category_id": segment["category_id"],
                    "segmentation": {"size": size, "counts": counts},
                    **segment,
                }
                for segment, (_, counts) in masks
            )

        yield write


def _segments(result: Segmentation) -> Iterator[dict[str, Any]]:
    """COCO fields of each class in an image."""
    for segment in find_segments(result.label_map, len(result.classes)):
        yield {
            "category_id": segment.label + 1,
            "area": segment.area,
            "bbox": list(segment.box),
            "iscrowd": 0,
        }


@dataclass(frozen=True)
class Segment:
    """All pixels of one class in an image."""

    label: int
    area: int
    """Number of pixels."""
    box: tuple[int, int, int, int]
    """Bounding box: left, top, width and height."""


def find_segments(label_map: NDArray[np.integer[Any]], classes: int) -> list[Segment]:
    """Segments of the classes in a label map (H, W), by class."""
    height, width = label_map.shape
    in_row = np.zeros((height, classes), dtype=bool)
    in_column = np.zeros((width, classes), dtype=bool)
    areas = np.zeros(classes, dtype=np.int64)
    columns = np.arange(width)
    for top in range(0, height, _ROWS):
        rows = label_map[top : top + _ROWS].astype(np.int64)
        areas += np.bincount(rows.ravel(), minlength=classes)
        in_row[np.arange(top, top + len(rows))[:, None], rows] = True
        in_column[columns, rows] = True
    segments = []
    for label in np.flatnonzero(areas).tolist():
        (left, box_width), (top, box_height) = _extent(in_column[:, label]), _extent(in_row[:, label])
        segments.append(Segment(label, int(areas[label]), (left, top, box_width, box_height)))
    return segments


def _extent(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """First true element, and the length up to the last."""
    indices = np.flatnonzero(mask)
    return int(indices[0]), int(indices[-1] - indices[0]) + 1
