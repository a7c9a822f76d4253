"""Segmentations to files: label maps and JSON lines always, what else is asked for beside them."""

import io
import json
import logging
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from metaformer.errors import ConfigError
from metaformer.storage import check_place, whole_bytes, whole_file
from metaformer.tasks.outputs import Format, Prediction, Writer, check_fps, json_line, write_formats
from metaformer.tasks.segmentation.draw import annotate
from metaformer.tasks.segmentation.results import Segmentation
from metaformer.tasks.segmentation.write_coco import panoptic_sink, rle_sink
from metaformer.visualize import album

LINES = "predictions.jsonl"


MASKS = "masks"


_PALETTE = 255
"""Classes that a PNG with a palette can hold beside the value for none."""


CLASSES = 150
"""Classes that the benchmark tells apart."""


FILE = "submission_ade20k.zip"


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outputs:
    """What is written of segmentations beside label maps and JSON lines."""

    images: bool = False
    """The images with the classes drawn on them; clips also as animations."""
    panoptic: bool = False
    """COCO's panoptic PNGs and JSON."""
    rle: bool = False
    """COCO's run lengths."""
    submission: Literal["ade20k"] | None = None
    """The zip that a benchmark's server takes."""
    fps: float | None = None
    """Images a second: all that is drawn is also joined to one animation."""


def write_segmentations(
    found: Iterable[Prediction[Segmentation]], out: str | Path | None, outputs: Outputs | None = None
) -> Iterator[str]:
    """Write results one by one, and yield what there is to print.

    What is written of one image appears when it is done; files of many when all are in them.

    Args:
        found: images with their segmentations.
        out: a folder; None yields JSON lines with the share of each class, and writes nothing.
        outputs: what else to write.

    Raises:
        ConfigError: outputs without a place for them, or that do not go together.
        OutputError: the place cannot be written to, or images lie where results go.
    """
    outputs = outputs or Outputs()
    check_fps(outputs.fps, outputs.images)
    if out is None:
        if outputs != Outputs():
            raise ConfigError("drawn images and COCO's files need a place: give the output folder")
        yield from (json.dumps(json_line(seen), ensure_ascii=False) for seen in found)
        return
    place = Path(out)
    if place.suffix.lower() in (".jsonl", ".csv"):
        raise ConfigError(f"{place}: label maps need a folder: leave out the ending")
    check_place(place / LINES)
    yield from write_formats(found, _formats(place, outputs))


def _formats(place: Path, outputs: Outputs) -> list[Format]:
    formats = [Format(mask_sink(place), "label maps", place / LINES, place / MASKS)]
    if outputs.images:
        drawn = place / album.FOLDER
        formats.append(
            Format(album.album_sink(place, draw_prediction, outputs.fps), "annotated images", drawn, drawn)
        )
    if outputs.panoptic:
        file = place / "panoptic.json"
        formats.append(Format(panoptic_sink(place), "panoptic images", file, place / "panoptic"))
    if outputs.rle:
        formats.append(Format(rle_sink(place), "images in run lengths", place / "rle.json"))
    if outputs.submission:
        file = place / FILE
        formats.append(Format(ade20k_sink(place), "images for ADE20K's server", file))
    return formats


@contextmanager
def mask_sink(place: Path) -> Iterator[Writer[Segmentation]]:
    """Write PLACE/masks/NAME.png as results come, and PLACE/predictions.jsonl when all are in.

    Raises:
        OutputError: they cannot be written.
    """
    with whole_file(place / LINES) as lines:

        def add(name: str, seen: Prediction[Segmentation]) -> None:
            with whole_bytes(place / MASKS / f"{name}.png") as stream:
                mask_image(seen.result).save(stream, "PNG")
            line = {**json_line(seen), "mask": f"{MASKS}/{name}.png"}
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")

        yield add


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


def draw_prediction(seen: Prediction[Segmentation], moving: bool = False) -> Image.Image:
    """An image with its segmentation drawn on it."""
    return annotate(seen.image, seen.result, moving)
