"""Pictures to predict on: files, folders, globs, or images in memory."""

import glob
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from metaformer.data.folder import EXTENSIONS, check_name
from metaformer.data.image import read_image
from metaformer.errors import DataError

Picture = str | Path | Image.Image
"""A file, a folder (with all below it), a glob, or an image."""


class Pictures:
    """A list of pictures, read when they are needed; a data source without labels.

    Raises:
        DataError: a path that is not there, or nothing found.
    """

    def __init__(self, pictures: Picture | Iterable[Picture]) -> None:
        single = isinstance(pictures, str | Path | Image.Image)
        wanted: list[Picture] = [pictures] if single else list(pictures)  # type: ignore[list-item, arg-type]
        self._found: list[Path | Image.Image] = []
        for picture in wanted:
            self._found += [picture] if isinstance(picture, Image.Image) else _files(picture)
        if not self._found:
            raise DataError("no pictures were given")

    def __len__(self) -> int:
        return len(self._found)

    @property
    def labels(self) -> Sequence[int]:
        """Zeros: what the pictures show is to be found out."""
        return [0] * len(self)

    def path(self, index: int) -> str:
        """Where a picture lies; empty for an image in memory."""
        found = self._found[index]
        return "" if isinstance(found, Image.Image) else str(found)

    def image(self, index: int) -> Image.Image:
        """The picture as RGB.

        Raises:
            BadImage: it cannot be read.
        """
        found = self._found[index]
        return found.convert("RGB") if isinstance(found, Image.Image) else read_image(found)


def _files(place: str | Path) -> list[Path]:
    path = Path(place)
    if path.is_file():
        check_name(path)
        return [path]
    if path.is_dir():
        found = [file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file()]
        found = [file for file in found if not file.name.startswith(".")]
        kind = "folder"
    elif glob.has_magic(str(place)):
        found, kind = (
            [Path(file) for file in glob.glob(str(place), recursive=True) if Path(file).is_file()],
            "pattern",
        )
    else:
        raise DataError(f"{place}: no such file or folder")
    if not found:
        raise DataError(f"{place}: no pictures in this {kind}")
    for file in found:
        check_name(file)
    return sorted(found)
