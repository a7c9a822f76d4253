"""One split of a data set: an image folder, parquet files or tar files."""

from collections.abc import Sequence
from pathlib import Path

from metaformer.data.folder import ImageFolder
from metaformer.data.shards.index import find_shards
from metaformer.data.shards.parquet import ParquetImages
from metaformer.data.shards.remote import is_remote
from metaformer.data.shards.tar import TarImages
from metaformer.errors import DataError

Split = ImageFolder | ParquetImages | TarImages
NO_CLASSES = {
    *("image", "images", "img", "imgs", "jpegimages", "data", "label", "labels", "annotation", "annotations"),
    *("mask", "masks", "segmentationclass", "train", "training", "train2017", "val", "valid", "validation"),
    *("val2017", "test", "testing", "test2017"),
}
"""Folders of other layouts, in small letters."""


def open_split(
    root: str | Path, split: str, classes: Sequence[str] | None = None, *, allow_missing: bool = False
) -> Split:
    """Open the images of a split, with random access.

    Shards that `metaformer data shard` wrote hold the same images with the same labels as their image
    folder: parquet in the same order, so that a run on it equals one on the folder bit for bit, tar shuffled.

    Args:
        root: a folder, or for shards also an fsspec URL, such as `s3://bucket/data`.
        split: its name, such as `train`.
        classes: the class list of a checkpoint or of the training split; labels are indices into it.
        allow_missing: accept a split without images of some of `classes`.

    Raises:
        DataError: no such split, a damaged one, or classes that do not match.
        MissingPackage: reading shards needs a package that is not installed.
    """
    shards = find_shards(root, split)
    if shards is None:
        if is_remote(root):
            raise DataError(
                f"{root}: no parquet or tar files of split {split!r}; image folders must lie on this machine"
            )
        return ImageFolder(root, split, classes, allow_missing=allow_missing)
    kind = ParquetImages if shards.kind == "parquet" else TarImages
    return kind(shards, classes, allow_missing=allow_missing)


def need_two_classes(split: Split) -> None:
    """Check that a training split has at least two classes, which are not the folders of another layout.

    Raises:
        DataError: it has one, or such folders.
    """
    if len(split.classes) < 2:
        raise DataError(f"{split.folder}: only one class, {split.classes[0]!r}: training needs at least two")
    if {name.lower() for name in split.classes} <= NO_CLASSES:
        raise DataError(
            f"{split.folder}: its folders {', '.join(split.classes)} are no classes: name the split "
            "(data.train), or train the task of these data (finetune/segment, finetune/detect)"
        )
