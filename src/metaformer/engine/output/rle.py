"""Segmentations in COCO's run-length format: one mask for each class of a picture."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from metaformer.data.run_lengths import run_lengths
from metaformer.engine.output.coco import coco_file
from metaformer.engine.output.segments import find_segments
from metaformer.engine.output.sink import Seen, Sink
from metaformer.tasks.segment_results import Segmentation


@contextmanager
def rle_sink(place: Path) -> Iterator[Sink]:
    """Write PLACE/rle.json, which pycocotools opens, when all results are in.

    Raises:
        OutputError: it cannot be written.
    """
    with coco_file(place / "rle.json") as file:
        numbers = count(1)

        def add(name: str, seen: Seen) -> None:
            image = file.add_image(name, seen)
            file.add({"id": next(numbers), "image_id": image, **mask} for mask in masks(seen.segmentation))

        yield add


def masks(result: Segmentation) -> Iterator[dict[str, Any]]:
    """Each class that a picture holds: category (counted from 1), run lengths, area and box."""
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
