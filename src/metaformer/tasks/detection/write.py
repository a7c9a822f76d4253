"""Files of detected objects: JSON lines, drawn images, COCO results."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from metaformer.errors import ConfigError
from metaformer.storage import atomic_text
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.detection.draw import draw_objects
from metaformer.tasks.detection.predict import run_inference
from metaformer.tasks.detection.results import DetectedObjects
from metaformer.tasks.outputs import (
    LINES,
    ImageNumbers,
    Output,
    Prediction,
    Writer,
    drawn_output,
    json_line,
    jsonl_writer,
    read_image_ids,
    write_outputs,
)

FILE = "coco.json"


def write_detections(
    predictions: Iterable[Prediction[DetectedObjects]],
    out: str | Path | None,
    model: LoadedModel | None = None,
    *,
    draw: bool = False,
    draw_all: bool = False,
    coco: bool = False,
    image_ids: Path | None = None,
    fps: float | None = None,
) -> Iterator[str]:
    """Write a line of JSON for the objects of each image; yields the lines to print.

    Args:
        predictions: what is written.
        out: a folder; None yields JSON lines.
        model: the network, which knows the classes' ids in COCO's files (default: counted from 1).
        draw: also write the images with boxes, masks and names drawn on them; those of videos are joined; of
            overlapping boxes the best alone, whatever their classes, from the score of the best F1 on.
        draw_all: with `draw`, every box that is reported, overlapping ones of other classes too.
        coco: also write all objects as COCO's results JSON, with masks.
        image_ids: with `coco`, the COCO file that gives each image's id by its name, such as that of a test
            split without annotations (default: numbers in the names, else counted).
        fps: with `draw`, frames a second: join all images to one animation.

    Raises:
        ConfigError: an option without `out`, or options that do not go together.
        OutputError: `out` cannot be written to, or the images lie in it.
    """
    if fps is not None and not draw:
        raise ConfigError("fps joins drawn images to an animation: ask for `draw` too")
    if image_ids is not None and not coco:
        raise ConfigError("image_ids are those of COCO's results: ask for `coco` too")
    given = None if image_ids is None else read_image_ids(image_ids)
    if draw_all and not draw:
        raise ConfigError("draw_all says which boxes are drawn: ask for `draw` too")

    def outputs(place: Path) -> list[Output]:
        numbers = ImageNumbers(given)

        def numbered(name: str, prediction: Prediction[DetectedObjects]) -> dict[str, Any]:
            return {**json_line(prediction), "image_id": numbers.of(name, prediction.path)}

        lines = jsonl_writer(place / LINES, numbered if coco else None)
        chosen = [Output(lines, "images", place / LINES)]
        if draw:
            iou = None if draw_all else run_inference(model.config if model else None).nms_threshold
            chosen.append(drawn_output(place, partial(_drawn, iou), fps))
        if coco:
            ids = model.metadata.category_ids if model is not None else None
            chosen.append(Output(coco_writer(place, ids, given), "images for COCO", place / FILE))
        return chosen

    return write_outputs(predictions, out, outputs, needs_folder={"draw": draw, "coco": coco})


@contextmanager
def coco_writer(
    place: Path, category_ids: Sequence[int] | None = None, image_ids: Mapping[str, int] | None = None
) -> Iterator[Writer[DetectedObjects]]:
    """Write PLACE/coco.json when all results are in.

    Args:
        place: where to.
        category_ids: the number of each class; counted from 1 when not given.
        image_ids: the id of each image by its file name.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic_text(place / FILE) as stream:
        numbers, between = ImageNumbers(image_ids), "\n"
        stream.write("[")

        def add(name: str, prediction: Prediction[DetectedObjects]) -> None:
            nonlocal between
            for row in prediction.result.to_coco(numbers.of(name, prediction.path), category_ids):
                stream.write(between + json.dumps(row))
                between = ",\n"

        yield add
        stream.write("\n]\n")


def _drawn(iou: float | None, prediction: Prediction[DetectedObjects], moving: bool) -> Image.Image:
    result = prediction.result
    return draw_objects(prediction.pixels(), result if iou is None else result.shown(iou))
