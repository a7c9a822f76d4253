"""The images of a split with their objects, as a reader of annotations found them."""

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from metaformer.data.class_lists import category_ids
from metaformer.data.folder import EXTENSIONS
from metaformer.errors import DataError
from metaformer.tasks.detection.instances import InstanceTable, Row


@dataclass(frozen=True)
class Fault:
    """Something in the annotations that must be mended."""

    kind: str
    """`image`, `id`, `category`, `box`, `segmentation`, or `annotation`."""
    text: str
    """Which file and annotation, and what is wrong."""
    single: bool
    """Whether it is about one object, without which the others can be used."""


@dataclass(frozen=True)
class Annotated:
    """What the files of a split say."""

    files: list[str]
    """Images, below their folder."""
    sizes: NDArray[np.int32]
    """Width and height of each (N, 2)."""
    ids: NDArray[np.int64]
    """COCO's number of each image; counted from 1 where there is none."""
    objects: InstanceTable
    classes: tuple[str, ...]
    category_ids: tuple[int, ...]
    """COCO's number of each class."""
    faults: tuple[Fault, ...]
    """What these are about is left out above."""
    unused: tuple[str, ...]
    """What is there and not used."""


class AnnotationBuilder:
    """What a reader has found so far.

    Args:
        classes: names of the classes.
        numbers: COCO's numbers of them, where its file has some.
    """

    def __init__(self, classes: tuple[str, ...], numbers: tuple[int, ...] | None = None) -> None:
        self.classes, self.ids_of_classes = classes, numbers or category_ids(classes)
        self.files: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.ids: list[int] = []
        self.rows: list[Row | None] = []
        self.faults: list[Fault] = []
        self.unused: list[str] = []

    def add(self, file: str, size: tuple[int, int], number: int | None = None) -> int:
        """Add an image; gives its place."""
        self.files.append(file)
        self.sizes.append(size)
        self.ids.append(len(self.files) if number is None else number)
        return len(self.files) - 1

    def fault(self, kind: str, text: str, single: bool = False) -> None:
        """Note what must be mended."""
        self.faults.append(Fault(kind, text, single))

    def packed(self) -> Annotated:
        """Give all that was found; it is collected no further."""
        sizes = np.array(self.sizes, dtype=np.int32).reshape(-1, 2)
        return Annotated(
            self.files,
            sizes,
            np.array(self.ids, dtype=np.int64),
            InstanceTable(self.rows, sizes),
            self.classes,
            self.ids_of_classes,
            tuple(self.faults),
            tuple(self.unused),
        )


class ImageFiles:
    """Which files there are below a folder, listed once; nothing outside it is ever there.

    Args:
        folder: where images lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._listed: dict[str, set[str]] = {}
        self._seen: set[str] = set()

    def trouble(self, name: str) -> str:
        """Say why a name below the folder is no image's; empty where it is."""
        path = PurePosixPath(name)
        if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
            return f"file_name {name!r:.200} does not lie in {self.folder}"
        above, base = os.path.split(str(path))
        if above not in self._listed:
            self._listed[above] = names_in(self.folder / above)
        if base not in self._listed[above]:
            return f"no such image {self.folder / name!s:.400}"
        self._seen.add(str(path))
        return ""

    def unused(self) -> list[str]:
        """Say how many images in the folders that were listed nobody asked for."""
        told = []
        for above, names in self._listed.items():
            images = (name for name in names if os.path.splitext(name)[1].lower() in EXTENSIONS)
            over = sum(os.path.join(above, name) not in self._seen for name in images)
            if over:
                told.append(f"{self.folder / above}: {over:,} image(s) without annotations are not used")
        return told


def names_in(folder: Path) -> set[str]:
    """Names of the files in a folder; none where there is no such folder.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise DataError(f"{folder}: cannot list it: {error.strerror}") from error
