"""COCO's JSON: annotations of many pictures, written one by one."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from metaformer.engine.output.sink import Seen
from metaformer.engine.whole_file import whole_file
from metaformer.tasks.segment_results import Segmentation


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
    """Annotations as they come; then the pictures and the classes that they are of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._between = stream, "\n"
        self._images: dict[int, dict[str, Any]] = {}
        self._categories: list[dict[str, Any]] = []
        stream.write('{"annotations": [')

    def add_image(self, name: str, seen: Seen) -> int:
        """List a picture, and give its number: the one that its name is, as in COCO, else the next free."""
        number = int(name) if name.isdecimal() else 0
        if number < 1 or number in self._images:
            number = len(self._images) + 1
            while number in self._images:
                number += 1
        width, height = seen.result.size
        entry = {"id": number, "file_name": seen.result.path, "width": width, "height": height}
        self._images[number] = entry if seen.frame is None else {**entry, "frame": seen.frame}
        self._categories = self._categories or categories(seen.result)
        return number

    def add(self, annotations: Iterable[dict[str, Any]]) -> None:
        """Write annotations."""
        for annotation in annotations:
            self._stream.write(self._between + json.dumps(annotation, ensure_ascii=False))
            self._between = ",\n"

    def finish(self) -> None:
        """Write the pictures and the classes, and close the object."""
        rest = {"images": list(self._images.values()), "categories": self._categories}
        self._stream.write("\n],\n" + json.dumps(rest, ensure_ascii=False)[1:] + "\n")


def categories(result: Segmentation) -> list[dict[str, Any]]:
    """The classes as COCO's categories; numbers begin at 1, since 0 is for pixels of no class."""
    named = zip(result.classes, result.palette, strict=True)
    return [
        {"id": number, "name": name, "supercategory": "", "isthing": 0, "color": list(colour)}
        for number, (name, colour) in enumerate(named, start=1)
    ]
