"""Segmentations to files: label maps and JSON lines always, what else is asked for beside them."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from metaformer.engine.output import album, submission
from metaformer.engine.output.formats import Format, check_fps, json_line, write_formats
from metaformer.engine.output.panoptic import panoptic_sink
from metaformer.engine.output.rle import rle_sink
from metaformer.engine.output.sink import Seen, Sink
from metaformer.engine.whole_file import check_place, whole_bytes, whole_file
from metaformer.errors import ConfigError
from metaformer.tasks.segment_results import Segmentation

LINES = "predictions.jsonl"
MASKS = "masks"
_PALETTE = 255
"""Classes that a PNG with a palette can hold beside the value for none."""


@dataclass(frozen=True)
class Outputs:
    """What is written of segmentations beside label maps and JSON lines."""

    pictures: bool = False
    """The pictures with the classes drawn on them; clips also as animations."""
    panoptic: bool = False
    """COCO's panoptic PNGs and JSON."""
    rle: bool = False
    """COCO's run lengths."""
    submission: Literal["ade20k"] | None = None
    """The zip that a benchmark's server takes."""
    fps: float | None = None
    """Pictures a second: all that is drawn is also joined to one animation."""


def write_segmentations(
    found: Iterable[Seen], out: str | Path | None, outputs: Outputs | None = None
) -> Iterator[str]:
    """Write results one by one, and yield what there is to print.

    What is written of one picture appears when it is done; files of many when all are in them.

    Args:
        found: pictures with their segmentations.
        out: a folder; None yields JSON lines with the share of each class, and writes nothing.
        outputs: what else to write.

    Raises:
        ConfigError: outputs without a place for them, or that do not go together.
        OutputError: the place cannot be written to, or pictures lie where results go.
    """
    outputs = outputs or Outputs()
    check_fps(outputs.fps, outputs.pictures)
    if out is None:
        if outputs != Outputs():
            raise ConfigError("drawn pictures and COCO's files need a place: give the output folder")
        yield from (json.dumps(json_line(seen), ensure_ascii=False) for seen in found)
        return
    place = Path(out)
    if place.suffix.lower() in (".jsonl", ".csv"):
        raise ConfigError(f"{place}: label maps need a folder: leave out the ending")
    check_place(place / LINES)
    yield from write_formats(found, _formats(place, outputs))


def _formats(place: Path, outputs: Outputs) -> list[Format]:
    formats = [Format(mask_sink(place), "label maps", place / LINES, place / MASKS)]
    if outputs.pictures:
        drawn = place / album.FOLDER
        formats.append(Format(album.album_sink(place, outputs.fps), "annotated pictures", drawn, drawn))
    if outputs.panoptic:
        file = place / "panoptic.json"
        formats.append(Format(panoptic_sink(place), "panoptic pictures", file, place / "panoptic"))
    if outputs.rle:
        formats.append(Format(rle_sink(place), "pictures in run lengths", place / "rle.json"))
    if outputs.submission:
        file = place / submission.FILE
        formats.append(Format(submission.ade20k_sink(place), "pictures for ADE20K's server", file))
    return formats


@contextmanager
def mask_sink(place: Path) -> Iterator[Sink]:
    """Write PLACE/masks/NAME.png as results come, and PLACE/predictions.jsonl when all are in.

    Raises:
        OutputError: they cannot be written.
    """
    with whole_file(place / LINES) as lines:

        def add(name: str, seen: Seen) -> None:
            with whole_bytes(place / MASKS / f"{name}.png") as stream:
                mask_image(seen.segmentation).save(stream, "PNG")
            line = {**json_line(seen), "mask": f"{MASKS}/{name}.png"}
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")

        yield add


def mask_image(result: Segmentation) -> Image.Image:
    """Classes as values: with a palette of their colours, or 16-bit grey where they are too many for one."""
    if len(result.classes) <= _PALETTE:
        return result.image()
    return Image.fromarray(result.label_map.astype(np.uint16))
