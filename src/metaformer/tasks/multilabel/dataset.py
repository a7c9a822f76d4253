"""Images of one split with any number of classes each."""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import torch
from PIL import Image
from torch import Tensor

from metaformer.color import Color
from metaformer.config import TrainConfig
from metaformer.data.class_lists import Names, check_class_names, given_names
from metaformer.data.divide import rarest_labels
from metaformer.data.folder import EXTENSIONS, UNREAD
from metaformer.data.image import read_image
from metaformer.errors import DataError
from metaformer.process import memory
from metaformer.serialize import shown
from metaformer.storage import as_path
from metaformer.tasks.base import divide_run
from metaformer.tasks.detection.dataset import open_detection
from metaformer.tasks.multilabel.formats import (
    IMAGE_FOLDERS,
    LabelFile,
    Layout,
    OnError,
    find_label_file,
    raise_error,
    read_labels,
)


class MultilabelFolder:
    """Images with their labels; `open_multilabel` makes it.

    Args:
        file: the label file.
        folder: where the images lie.
        paths: image files.
        labels: (N, K) bool, which classes each image has.
        classes: names of the K classes.
        unlabeled: images directly in `folder`, where it is not the root, that the label file does not name.
    """

    def __init__(
        self,
        file: Path,
        folder: Path,
        paths: Sequence[Path],
        labels: Tensor,
        classes: Sequence[str],
        unlabeled: Sequence[Path] = (),
    ) -> None:
        self.file, self.folder, self.classes, self.unlabeled = file, folder, tuple(classes), tuple(unlabeled)
        self.labels: Tensor = labels.float()
        """(N, K) float32, 0 or 1."""
        self._paths = [str(path) for path in paths]

    def __len__(self) -> int:
        return len(self._paths)

    def subset(self, wanted: Sequence[bool]) -> Self:
        """The images that are wanted, with all classes."""
        part = copy.copy(self)
        part._paths = [path for path, there in zip(self._paths, wanted, strict=True) if there]
        part.labels = self.labels[torch.tensor(wanted)]
        return part

    def path(self, index: int) -> Path:
        """File of an image."""
        return Path(self._paths[index])

    def image(self, index: int, background: Color | None = None) -> Image.Image:
        """An image in RGB.

        Raises:
            BadImage: it cannot be read.
        """
        return read_image(self._paths[index], background=background)


def open_multilabel(
    root: str | Path,
    split: str,
    layout: Layout = "auto",
    *,
    class_names: Names = None,
    separator: str = " ",
    on_error: OnError = raise_error,
) -> MultilabelFolder:
    """Open the images and labels of a split; no image is read.

    Args:
        root: the data set.
        split: its name, such as `train`.
        layout: `csv`, `jsonl`, `coco` (the classes whose objects an image holds), or `auto`.
        class_names: class names in order, or a file with one a line; by default the label file's columns, or
            its labels sorted.
        separator: what stands between labels in a CSV column.
        on_error: is given every error; what has one is left out if it returns.

    Raises:
        DataError: no label file, a label that is no class, or an image that is missing; the message names
            file and line or image.
    """
    root = as_path(root, "root", DataError, expand=True)
    file = None if layout == "coco" else find_label_file(root, split, layout)
    if file is None and layout in ("auto", "coco"):
        return _open_coco(root, split, layout, class_names)
    if file is None:
        raise DataError(f"{root}: no {split}.{layout}, labels/{split}.{layout} or {split}/labels.{layout}")
    read = read_labels(file, separator, on_error)
    if not read.images:
        raise DataError(f"{file}: no images")
    classes = _classes(file, read, class_names, on_error)
    names = _with_slashes(read.images, [root, file.parent, *_places(root, split)])
    folder = _image_folder(root, split, file, names)
    found = [(folder / name, labels) for name, labels in zip(names, read.labels, strict=True)]
    missing = [path for path, _ in found if not os.path.isfile(path)]  # of any name: Path.is_file would raise
    if missing:
        more = f", and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        on_error(DataError(f"{file}: names {shown(str(missing[0]), quote=False)}, which is not there{more}"))
    gone = set(missing)
    found = [(path, labels) for path, labels in found if path not in gone]
    index = {name: place for place, name in enumerate(classes)}
    if 5 * len(found) * len(classes) > memory():  # as bytes, and as float32
        raise DataError(
            f"{file}: {len(found):,} images × {len(classes):,} classes need more memory than there is: "
            "leave out rare labels, or give fewer class_names"
        )
    matrix = torch.zeros(len(found), len(classes), dtype=torch.bool)
    for row, (_, labels) in enumerate(found):
        for label in labels:
            if label in index:  # else `_classes` has reported it
                matrix[row, index[label]] = True
    named = {path for path, _ in found}
    nested = folder.is_dir() and folder != root
    images = EXTENSIONS | UNREAD
    there = sorted(path for path in folder.iterdir() if path.suffix.lower() in images) if nested else []
    unlabeled = [path for path in there if path not in named]
    return MultilabelFolder(file, folder, [path for path, _ in found], matrix, classes, unlabeled)


def open_labels(
    config: TrainConfig,
    split: str,
    class_names: Names,
    layout: Layout | None = None,
    separator: str | None = None,
) -> MultilabelFolder:
    """A split of a run's data set; `layout` and `separator` are the run's own where they are not given.

    Raises:
        DataError: it is not laid out as it should be.
    """
    options = config.multilabel
    layout, separator = layout or options.layout, options.separator if separator is None else separator
    return open_multilabel(config.data.root, split, layout, class_names=class_names, separator=separator)


def open_parts(
    config: TrainConfig, layout: Layout | None = None, separator: str | None = None
) -> tuple[MultilabelFolder, MultilabelFolder] | None:
    """Training and held-out part of a run's data, where it divides them itself (`data.val_fraction`).

    Raises:
        ConfigError: an expression for groups that is none.
        DataError: the data are not laid out as they should be, or a part has no images.
    """
    if config.data.val_fraction is None:
        return None
    whole = open_labels(config, config.data.train, config.multilabel.class_names, layout, separator)
    images, labels = whole.labels.nonzero(as_tuple=True)
    return divide_run(config, whole, rarest_labels(images.tolist(), labels.tolist(), len(whole)))


def _open_coco(root: Path, split: str, layout: Layout, class_names: Names) -> MultilabelFolder:
    """The classes whose objects, crowds among them, each image of a COCO data set holds."""
    if layout == "auto" and not any(root.glob("**/*.json")):
        lists = ", ".join(sorted(path.name for path in root.glob("*") if path.suffix in (".csv", ".jsonl")))
        there = f"; it holds {lists}: of one list, labels.csv, the split is . (data.train, --split)"
        need = f"write {split}.csv with columns image and labels, or {split}.jsonl"
        raise DataError(f"{root}: no labels of {split}: {need}{there if lists else ''}")
    objects = open_detection(root, split, "coco", classes=class_names, clip_boxes=True)  # boxes do not matter
    matrix = torch.zeros(len(objects), len(objects.classes), dtype=torch.bool)
    for index in range(len(objects)):
        matrix[index, torch.from_numpy(objects.objects.labels[objects.objects.of(index)]).long()] = True
    paths = [objects.path(index) for index in range(len(objects))]
    return MultilabelFolder(objects.annotation_path, objects.folder, paths, matrix, objects.classes)


def _classes(file: Path, read: LabelFile, class_names: Names, on_error: OnError) -> tuple[str, ...]:
    """Class names: those given, of which the file's must be, else the file's own."""
    own = read.classes or tuple(sorted(frozenset().union(*read.labels)))
    given, where = given_names(class_names)
    if given is None:
        return check_class_names(own, f"{file}: its labels") if own else own
    unknown = sorted(set(own) - set(given))
    if unknown:
        line = (
            f"{file}: {unknown[0]!r} is none of the {len(given)} classes of {where or 'the training split'}"
        )
        on_error(DataError(line + (f", nor are {len(unknown) - 1} more labels" if len(unknown) > 1 else "")))
    return given


def _places(root: Path, split: str) -> list[Path]:
    return [root / place.format(split=split) for place in IMAGE_FOLDERS]


def _with_slashes(names: Sequence[str], places: Sequence[Path]) -> Sequence[str]:
    """Names with the separators of this system, unless files have names with backslashes."""
    foreign = [name for name in names if "\\" in name]
    if not foreign or any(os.path.isfile(place / foreign[0]) for place in places):
        return names
    return [name.replace("\\", "/") for name in names]


def _image_folder(root: Path, split: str, file: Path, images: Sequence[str]) -> Path:
    """The folder that the names in a label file are relative to."""
    places = _places(root, split)
    for place in (*places, file.parent):
        if any(os.path.isfile(place / name) for name in images[:10]):
            return place
    tried = ", ".join(str(place) for place in places)
    raise DataError(f"{file}: names {shown(images[0])}, which is in none of {tried}")
