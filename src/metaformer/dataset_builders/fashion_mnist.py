"""Fashion-MNIST as an image folder, https://arxiv.org/abs/1708.07747."""

import gzip
import hashlib
import math
import sys
import zlib
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from metaformer.data.demo import encode
from metaformer.data.divide import Division, hold_out
from metaformer.errors import DataError, DownloadError
from metaformer.storage import as_path, atomic_folder, cache_dir, open_regular
from metaformer.weights.download import download

CLASSES: Final = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle-boot"),
)
VAL_SHARE: Final = 1 / 12
"""Of the 60,000 training images, 5,000 are for validation."""
SPLIT_SEED: Final = 0
ADDRESS: Final = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
DEBIAN: Final = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package `dataset-fashion-mnist` has the files."""


class IdxFile(NamedTuple):
    """A published file."""

    name: str
    sha256: str
    """Hash of its content before compression, which every copy has in common."""
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of its content: a magic number, the shape, and a byte for each value."""
        return 4 + 4 * len(self.shape) + math.prod(self.shape)


FILES: Final = {
    "train images": IdxFile(
        "train-images-idx3-ubyte",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        (60_000, 28, 28),
    ),
    "train labels": IdxFile(
        "train-labels-idx1-ubyte",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        (60_000,),
    ),
    "test images": IdxFile(
        "t10k-images-idx3-ubyte",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        (10_000, 28, 28),
    ),
    "test labels": IdxFile(
        "t10k-labels-idx1-ubyte",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        (10_000,),
    ),
}
README: Final = """Fashion-MNIST: 28×28 gray images of ten kinds of clothing.
Han Xiao, Kashif Rasul, Roland Vollgraf: Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine
Learning Algorithms, 2017, https://arxiv.org/abs/1708.07747; github.com/zalandoresearch/fashion-mnist

Copyright 2017 Zalando SE, https://tech.zalando.com; MIT license.

test holds the 10,000 published test images. Of the 60,000 training images, {val:,} (the same number of each
class) are val; the others are train. A file's name is the image's number in the published file.
"""


def write_fashion_mnist(
    out: str | Path, *, source: str | Path | None = None, progress: bool = True
) -> Division:
    """Write Fashion-MNIST as an image folder of PNG files, `train`, `val` and `test`.

    The files come from the folder that is named, else from Debian's package, else they are downloaded once.

    Args:
        out: where to: a new or empty folder.
        source: folder with the four published files, with or without .gz.
        progress: show a bar on stderr.

    Raises:
        DataError: a file is missing, damaged, or not the published one.
        DownloadError: the files cannot be downloaded.
        OutputError: the folder cannot be written, or is not empty.
    """
    target = as_path(out, "out", DataError, expand=True)
    folder = _folder(None if source is None else as_path(source, "source", DataError, expand=True), progress)
    content = {name: _read(folder, file) for name, file in FILES.items()}
    names = [f"{index:05d}" for index in range(len(content["train labels"]))]
    held = hold_out(names, content["train labels"].tolist(), VAL_SHARE, SPLIT_SEED)
    place = [*("val" if one else "train" for one in held), *["test"] * len(content["test labels"])]
    labels = np.concatenate([content["train labels"], content["test labels"]]).tolist()
    images = np.concatenate([content["train images"], content["test images"]])
    names += [f"{index:05d}" for index in range(len(content["test labels"]))]
    with atomic_folder(target) as temporary:
        (temporary / "README.txt").write_text(README.format(val=sum(held)), encoding="utf-8")
        for split in ("train", "val", "test"):
            for name in CLASSES:
                (temporary / split / name).mkdir(parents=True)
        rows: Any = zip(place, labels, names, images, strict=True)
        for split, label, name, pixels in tqdm(
            rows, "Fashion-MNIST", len(place), unit="image", file=sys.stderr, disable=not progress
        ):
            file = temporary / split / CLASSES[label] / f"{name}.png"
            file.write_bytes(encode(Image.fromarray(pixels), file.name))
    return Division.of(target, CLASSES, labels, place)


def _folder(source: Path | None, progress: bool) -> Path:
    """Folder with the published files."""
    if source is not None:
        return source
    if DEBIAN.is_dir():
        return DEBIAN
    cache = cache_dir() / "datasets" / "fashion-mnist"
    by_hand = "name the folder of all four (source=, --from); Debian's dataset-fashion-mnist has them as well"
    for file in FILES.values():
        name = f"{file.name}.gz"
        if not (cache / name).is_file():
            download(f"{ADDRESS}/{name}", cache / name, progress=progress, by_hand=by_hand)
            try:
                _read(cache, file)
            except DataError as error:  # so that the next try fetches it again
                (cache / name).unlink()
                raise DownloadError(f"{ADDRESS}/{name}: {error}; it was removed: try again") from error
    return cache


def _read(folder: Path, file: IdxFile) -> NDArray[np.uint8]:
    """Content of a published file, as an array of its shape.

    Raises:
        DataError: it is missing, damaged, or another file.
    """
    path = next((p for p in (folder / f"{file.name}.gz", folder / file.name) if p.is_file()), None)
    if path is None:
        raise DataError(
            f"{folder}: has neither {file.name}.gz nor {file.name}: name the folder with the files"
        )
    content = _content(path, file.size + 1)
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise DataError(
            f"{path}: the SHA-256 of its content begins with {digest[:12]}, that of Fashion-MNIST's "
            f"{file.name} with {file.sha256[:12]}: it is another file, or damaged: fetch it again"
        )
    values = np.frombuffer(content, np.uint8, offset=len(content) - math.prod(file.shape))
    return values.reshape(file.shape)


def _content(path: Path, most: int) -> bytes:
    """So many bytes of a file, which may be compressed by gzip."""
    with open_regular(path) as stream:
        if path.suffix != ".gz":
            return stream.read(most)
        try:
            with gzip.open(stream) as unpacked:
                return unpacked.read(most)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(f"{path}: is truncated, damaged or no gzip ({error}): fetch it again") from error
