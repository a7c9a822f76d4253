"""A data set as ImageNet lies on disk: root/split/class/pictures."""

import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from PIL import Image

from metaformer.data.image import read_image
from metaformer.errors import DataError

EXTENSIONS: Final = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"})
_UNREADABLE: Final = frozenset(
    {".avif", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".pgm", ".ppm", ".svg", ".tga", ".tif", ".tiff"}
)
_log = logging.getLogger(__name__)


class ImageFolder:
    """The pictures of one split with the folder each lies in as its class.

    Classes are the folders' names, sorted; within a class pictures are sorted by path, and may lie in
    sub-folders. Hidden files are passed over; files whose extension is no picture's are counted in
    `ignored` and named in the log.

    Args:
        root: the data set.
        split: its sub-folder, such as `train`.
        classes: the class list of a checkpoint or of the training split; labels are positions in it.
        allow_missing: take a split that has no folder for some of `classes` (ImageNet-A, -R).

    Raises:
        DataError: the layout is another one; the message says what is there instead.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        classes: Sequence[str] | None = None,
        *,
        allow_missing: bool = False,
    ) -> None:
        self.folder = _split_folder(Path(root).expanduser(), split)
        found = _class_folders(self.folder)
        if classes is not None:
            _compare(self.folder, found, classes, allow_missing)
        self.classes = tuple(found if classes is None else classes)
        self.labels: list[int] = []
        self.ignored: Counter[str] = Counter()
        self._files: list[str] = []  # text takes a third of the memory of Path, in every worker
        for name in sorted(found, key=self.classes.index) if len(found) < 100 else self._in_order(found):
            self._scan(name)
        if self.ignored:
            kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.ignored.items()))
            _log.warning("%s: ignored files that are no pictures: %s", self.folder, kinds)
