"""Segmentations to files: label maps and JSON lines always, what else is asked for beside them."""

import io
import logging
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from metaformer.errors import ConfigError
from metaformer.storage import whole_bytes
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.outputs import (
    LINES,
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
from metaformer.tasks.segmentation.write_coco import panoptic_sink, rle_sink

MASKS = "masks"


_PALETTE = 255
"""Classes that a PNG with a palette can hold beside the value for none."""


CLASSES = 150
"""Classes that the benchmark tells apart."""


FILE = "submission_ade20k.zip"


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
        ConfigError: an option without a place, or options that do not go together.
        OutputError: the place cannot be written to, or the images lie in it.
    """
    if fps is not None and not draw:
        raise ConfigError("fps joins drawn images to an animation: ask for `draw` too")

    def outputs(place: Path) -> list[Output]:
        masks = place / MASKS
        chosen = [Output(mask_writer(place), "label maps", place / LINES, masks)]
        if draw:
            chosen.append(drawn_output(place, _drawn, fps))
        if panoptic:
            file = place / "panoptic.json"
            chosen.append(Output(panoptic_sink(place), "panoptic images", file, place / "panoptic"))
        if rle:
            chosen.append(Output(rle_sink(place), "images in run lengths", place / "rle.json"))
        if submission:
            chosen.append(Output(ade20k_sink(place), "images for ADE20K's server", place / FILE))
        return chosen

    asked = {"draw": draw, "panoptic": panoptic, "rle": rle, "submission": submission}
    return write_outputs(predictions, out, outputs, needs_folder=asked)


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
            with whole_bytes(place / MASKS / f"{name}.png") as stream:
                mask_image(prediction.result).save(stream, "PNG")
            write_line(name, prediction)

        yield write


def mask_image(result: Segmentation) -> Image.Image:
    """Classes as values: with a palette of their colors, or 16-bit gray where they are too many for one."""
    if len(result.classes) <= _PALETTE:
        return result.image()
    return Image.fromarray(result.label_map.astype(np.uint16))


@contextmanager
def ade20k_sink(place: Path) -> Iterator[Writer[Segmentation]]:
    """Write PLACE/submission_ade20k.zip when all results are in.

    Raises:
        ConfigError: more classes than the server knows, or two images of one name, by which it goes.
        OutputError: it cannot be written.
    """
    with whole_bytes(place / FILE) as stream, zipfile.ZipFile(stream, "w") as archive:
        taken: set[str] = set()

        def add(name: str, seen: Prediction[Segmentation]) -> None:
            own = f"{Path(seen.result.path).stem}.png"
            if not seen.result.path or seen.frame is not None:
                raise ConfigError("submission: of image files only, since the server goes by their names")
            if not taken and len(seen.result.classes) != CLASSES:
                known = len(seen.result.classes)
                _log.warning("submission: the server knows ADE20K's %d classes, not %d", CLASSES, known)
            if own in taken:
                raise ConfigError(f"submission: two images are called {own}, and the server goes by names")
            taken.add(own)
            entry = zipfile.ZipInfo(own)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, _png(submission_image(seen.result)))

        yield add


def submission_image(result: Segmentation) -> Image.Image:
    """Class numbers from 1, as gray values, at the image's size.

    Raises:
        ConfigError: more classes than the server knows.
    """
    if len(result.classes) > CLASSES:
        raise ConfigError(
            f"submission: ADE20K has {CLASSES} classes, but this network tells {len(result.classes)} apart"
        )
    return Image.fromarray((result.label_map + 1).astype(np.uint8))


def _png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def _drawn(prediction: Prediction[Segmentation], moving: bool) -> Image.Image:
    return annotate(prediction.pixels(), prediction.result, moving)
