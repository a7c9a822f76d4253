"""Segmentations in COCO's panoptic format: PNGs of segment numbers, and one JSON file that explains them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metaformer.engine.output.coco import coco_file
from metaformer.engine.output.segments import find_segments
from metaformer.engine.output.sink import Seen, Sink
from metaformer.engine.whole_file import whole_bytes
from metaformer.tasks.segment_results import Segmentation


@contextmanager
def panoptic_sink(place: Path) -> Iterator[Sink]:
    """Write PLACE/panoptic/NAME.png as results come, and PLACE/panoptic.json at the end.

    Raises:
        OutputError: they cannot be written.
    """
    with coco_file(place / "panoptic.json") as file:

        def add(name: str, seen: Seen) -> None:
            number = file.add_image(name, seen)
            with whole_bytes(place / "panoptic" / f"{name}.png") as stream:
                segment_image(seen.segmentation).save(stream, "PNG")
            segments = segments_info(seen.segmentation)
            file.add([{"image_id": number, "file_name": f"{name}.png", "segments_info": segments}])

        yield add


def segment_image(result: Segmentation) -> Image.Image:
    """The numbers of the segments as colours: red + 256·green + 65536·blue; each class is one segment."""
    numbers = np.arange(1, len(result.classes) + 1)
    colours = np.stack([numbers >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)
    return Image.fromarray(colours[result.label_map])


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
