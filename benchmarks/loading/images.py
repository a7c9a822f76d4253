"""The images that every loader reads: links to somebody's, or photographs made in ImageNet's size."""

from pathlib import Path
from typing import Final

import numpy as np

from metaformer.errors import DataError

CLASSES: Final = 4
"""Folders that the images are laid in: loaders want some."""
SIZE: Final = (500, 375)
"""Width and height of most of ImageNet's images."""
QUALITY: Final = 90
"""Of the JPEG files: about 50 kB each, where ImageNet's have 110 kB."""


def lay_out(folder: Path, images: int, root: Path | None) -> int:
    """Fill `folder/train` with class folders of images; gives how many, fewer where `root` holds fewer.

    Args:
        folder: an empty folder.
        images: how many are wanted.
        root: where images lie, at any depth; they are linked to. Without it they are made.

    Raises:
        DataError: there are none, or the folder cannot be read.
        MissingPackage: without `root`, scikit-learn is not installed.
    """
    for number in range(CLASSES):
        (folder / "train" / str(number)).mkdir(parents=True)
    return _make(folder, images) if root is None else _link(folder, images, root)


def _place(folder: Path, number: int, suffix: str) -> Path:
    return folder / "train" / str(number % CLASSES) / f"{number:06d}{suffix}"


def _link(folder: Path, images: int, root: Path) -> int:
    from metaformer.data.folder import EXTENSIONS, files_below

    def refuse(fault: DataError) -> None:
        raise fault

    root = root.expanduser().resolve()
    found = [name for name in files_below(root, refuse) if Path(name).suffix.lower() in EXTENSIONS]
    if len(found) < CLASSES:
        raise DataError(f"{root}: {len(found)} images in it and below: at least {CLASSES} are needed")
    count = min(images, len(found))
    for number in range(count):
        name = found[number * len(found) // count]
        _place(folder, number, Path(name).suffix.lower()).symlink_to(root / name)
    return count


def _make(folder: Path, images: int) -> int:
    """Random parts of scikit-learn's two photographs, at least 0.7 of their sides."""
    from PIL import Image

    from metaformer.data.demo import SceneGenerator

    photos = SceneGenerator(0, 5).photos
    draw = np.random.RandomState(0)
    for number in range(images):
        photo = photos[number % len(photos)]
        width, height = (int(side * draw.uniform(0.7, 1)) for side in photo.size)
        left, top = draw.randint(photo.width - width + 1), draw.randint(photo.height - height + 1)
        part = (left, top, left + width, top + height)
        image = photo.resize(SIZE, Image.Resampling.BICUBIC, part)
        image.save(_place(folder, number, ".jpg"), quality=QUALITY)
    return images
