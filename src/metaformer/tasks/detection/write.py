"""Found objects to files: JSON lines always, what else is asked for beside them."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from metaformer.errors import ConfigError
from metaformer.storage import check_place, whole_file
from metaformer.tasks.detection.draw import annotate
from metaformer.tasks.detection.results import DetectedObjects
from metaformer.tasks.outputs import (
    Format,
    ImageNumbers,
    Prediction,
    Writer,
    check_fps,
    json_line,
    write_formats,
)
from metaformer.visualize import album

LINES = "predictions.jsonl"


FILE = "coco.json"


@dataclass(frozen=True)
class DetectOutputs:
    """What is written of found objects beside JSON lines."""

    images: bool = False
    """The images with boxes, masks and names drawn on them; clips also as animations."""
    coco: bool = False
    """COCO's results, with masks; the lines then tell the number that each image has there."""
    fps: float | None = None
    """Images a second: all that is drawn is also joined to one animation."""


def write_detections(
    found: Iterable[Prediction[DetectedObjects]],
    out: str | Path | None,
    outputs: DetectOutputs | None = None,
    category_ids: Sequence[int] | None = None,
) -> Iterator[str]:
    """Write results one by one, and yield what there is to print.

    What is written of one image appears when it is done; files of many when all are in them.

    Args:
        found: images with their objects.
        out: a folder; None yields JSON lines and writes nothing.
        outputs: what else to write.
        category_ids: the number of each class in COCO's files; counted from 1 when not given.

    Raises:
        ConfigError: outputs without a place for them, or that do not go together.
        OutputError: the place cannot be written to, or images lie where results go.
    """
    outputs = outputs or DetectOutputs()
    check_fps(outputs.fps, outputs.images)
    if out is None:
        if outputs != DetectOutputs():
            raise ConfigError("drawn images and COCO's files need a place: give the output folder")
        yield from (json.dumps(json_line(seen), ensure_ascii=False) for seen in found)
        return
    place = Path(out)
    if place.suffix.lower() in (".json", ".jsonl", ".csv"):
        raise ConfigError(f"{place}: objects are written to a folder: leave out the ending")
    check_place(place / LINES)
    formats = [Format(line_sink(place, numbered=outputs.coco), "images", place / LINES)]
    if outputs.images:
        drawn = place / album.FOLDER
        formats.append(
            Format(album.album_sink(place, draw_prediction, outputs.fps), "annotated images", drawn, drawn)
        )
    if outputs.coco:
        file = place / FILE
        formats.append(Format(coco_sink(place, category_ids), "images for COCO", file))
    yield from write_formats(found, formats)


@contextmanager
def line_sink(place: Path, numbered: bool = False) -> Iterator[Writer[DetectedObjects]]:
    """Write PLACE/predictions.jsonl when all results are in.

    Args:
        place: where to.
        numbered: tell the number of each image, as it is in COCO's results.

    Raises:
        OutputError: it cannot be written.
    """
    with whole_file(place / LINES) as lines:
        numbers = ImageNumbers()

        def add(name: str, seen: Prediction[DetectedObjects]) -> None:
            line = {**json_line(seen), "image_id": numbers.of(name)} if numbered else json_line(seen)
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")

        yield add


@contextmanager
def coco_sink(place: Path, category_ids: Sequence[int] | None = None) -> Iterator[Writer[DetectedObjects]]:
    """Write PLACE/coco.json when all results are in.

    Args:
        place: where to.
        category_ids: the number of each class; counted from 1 when not given.

    Raises:
        OutputError: it cannot be written.
    """
    with whole_file(place / FILE) as stream:
        numbers, between = ImageNumbers(), "\n"
        stream.write("[")

        def add(name: str, seen: Prediction[DetectedObjects]) -> None:
            nonlocal between
            for row in seen.result.to_coco(numbers.of(name), category_ids):
                stream.write(between + json.dumps(row))
                between = ",\n"

        yield add
        stream.write("\n]\n")


def draw_prediction(seen: Prediction[DetectedObjects], moving: bool = False) -> Image.Image:
    """An image with its objects drawn on it."""
    return annotate(seen.image, seen.result)
