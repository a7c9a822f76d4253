"""COCO's JSON: annotations of many pictures, written one by one."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from metaformer.engine.output.sink import Seen
from metaformer.engine.whole_file import whole_file
from metaformer.tasks.segment_results import Segmentation


class ImageNumbers:
    """Numbers of pictures: the one that a name is, as in COCO, else the next free."""

    def __init__(self) -> None:
        self._taken: set[int] = set()

    def of(self, name: str) -> int:
        """The number of one more picture."""
        number = int(name) if name.isdecimal() else 0
        if number < 1 or number in self._taken:
            number = len(self._taken) + 1
            while number in self._taken:
                number += 1
        self._taken.add(number)
        return number


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
        self._numbers, self._images = ImageNumbers(), list[dict[str, Any]]()
        self._categories: list[dict[str, Any]] = []
        stream.write('{"annotations": [')

    def add_image(self, name: str, seen: Seen) -> int:
        """List a picture, and give its number."""
        number = self._numbers.of(name)
        width, height = seen.result.size
        entry = {"id": number, "file_name": seen.result.path, "width": width, "height": height}
        self._images.append(entry if seen.frame is None else {**entry, "frame": seen.frame})
        self._categories = self._categories or categories(seen.segmentation)
        return number

    def add(self, annotations: Iterable[dict[str, Any]]) -> None:
        """Write annotations."""
        for annotation in annotations:
            self._stream.write(self._between + json.dumps(annotation, ensure_ascii=False))
            self._between = ",\n"

    def finish(self) -> None:
        """Write the pictures and the classes, and close the object."""
        rest = {"images": self._images, "categories": self._categories}
        self._stream.write("\n],\n" + json.dumps(rest, ensure_ascii=False)[1:] + "\n")


def categories(result: Segmentation) -> list[dict[str, Any]]:
    """The classes as COCO's categories; numbers begin at 1, since 0 is for pixels of no class."""
    named = zip(result.classes, result.palette, strict=True)
    return [
        {"id": number, "name": name, "supercategory": "", "isthing": 0, "color": list(colour)}
        for number, (name, colour) in enumerate(named, start=1)
    ]
