"""Segmentation data sets: images with a label map each."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from PIL import Image

from metaformer.color import Color
from metaformer.config import TrainConfig
from metaformer.data.class_lists import palette_for
from metaformer.data.dataset import AugmentedDataset, Item, seeded
from metaformer.data.image import read_image
from metaformer.data.sampler import Sample, sample_seed
from metaformer.errors import BadImage, DataError
from metaformer.tasks.base import divide_run
from metaformer.tasks.segmentation.labels import LabelMap, LabelTable, read_label_map, resolve_class_names
from metaformer.tasks.segmentation.layouts import ImagePairs, choose_layout, find_layout, find_pairs
from metaformer.tasks.segmentation.transforms import JointTransform


class SegmentationFolder:
    """Images and label maps of one split; built by `open_segmentation`.

    Args:
        pairs: files of the images and label maps.
        classes: class names.
        table: lookup table from values in label maps to classes.
        layout: name of the directory layout.
    """

    def __init__(self, pairs: ImagePairs, classes: Sequence[str], table: LabelTable, layout: str) -> None:
        self.folder, self.split, self.layout, self.table = pairs.folder, pairs.split, layout, table
        self.classes: tuple[str, ...] = tuple(classes)
        self.palette: tuple[Color, ...] = table.colors or palette_for(self.classes)
        """RGB color of each class."""
        self.pixels: tuple[int, ...] = ()
        """Pixels of each class, once all label maps have been read."""
        self.ignore_index: int = table.ignore_index
        """Label of ignored pixels: 255, or 65535 for more than 255 classes."""
        self.unused, self.unpaired = pairs.unused, pairs.unpaired
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs.images)

    def subset(self, wanted: Sequence[bool]) -> Self:
        """The images that are wanted, with their label maps."""
        part, pairs = copy.copy(self), self._pairs
        images, label_maps = (
            tuple(name for name, there in zip(names, wanted, strict=True) if there)
            for names in (pairs.images, pairs.label_maps)
        )
        part._pairs = replace(pairs, images=images, label_maps=label_maps)
        return part

    @property
    def labels(self) -> Sequence[int]:
        """Zeros: `Source` asks for a label per image, and segmentation has none."""
        return [0] * len(self)

    def path(self, index: int) -> Path:
        """File of an image."""
        return self._pairs.root / self._pairs.images[index]

    def label_path(self, index: int) -> Path:
        """File of a label map."""
        return self._pairs.root / self._pairs.label_maps[index]

    def image(self, index: int, background: Color | None = None) -> Image.Image:
        """Read an image as RGB.

        Raises:
            BadImage: it cannot be read.
        """
        return read_image(self.path(index), background=background)

    def label_map(self, index: int) -> LabelMap:
        """Read a label map (H, W) of classes 0 … K − 1 and `ignore_index`.

        Raises:
            BadImage: it cannot be read, is not a label map, or holds an unknown value.
        """
        path = self.label_path(index)
        return self.table.to_classes(read_label_map(path, self.table.colors), path)

    def pair(self, index: int, background: Color | None = None) -> tuple[Image.Image, LabelMap]:
        """Read an image and its label map.

        Raises:
            BadImage: one of them cannot be used, or their sizes differ.
        """
        image, labels = self.image(index, background), self.label_map(index)
        if error := self.size_mismatch(index, (labels.shape[1], labels.shape[0]), image.size):
            raise BadImage(self.label_path(index), error)
        return image, labels

    def size_mismatch(self, index: int, labels: tuple[int, int], image: tuple[int, int]) -> str:
        """Error message for different (width, height) of a label map and its image; empty if equal."""
        if labels == image:
            return ""
        sizes = f"is {labels[0]}x{labels[1]} and its image {self.path(index)} {image[0]}x{image[1]}"
        if labels == image[::-1]:
            return (
                f"{sizes}: images are rotated by their EXIF orientation, label maps are not; "
                "save both upright, without orientation"
            )
        return f"{sizes}: both must have one size"


def open_segmentation(
    root: str | Path,
    split: str,
    layout: str = "auto",
    *,
    classes: Sequence[str] | str | Path | None = None,
    reduce_zero_label: bool | None = None,
    ignore_index: int | None = None,
    whole: bool = False,
) -> SegmentationFolder:
    """Open the images and label maps of a split; only their names are read.

    Args:
        root: folder of the data set.
        split: name of the split; `train` and `val` are translated to the layout's names.
        layout: `ade20k`, `voc`, `cityscapes`, `coco_stuff`, `folders`, `fiftyone`, or `auto` to recognize it.
        classes: class names, or a text file of them, one per line: those of a checkpoint, or of a data set
            that has none; a data set's own names must be equal.
        reduce_zero_label: whether value 0 is ignored, and 1 is the first class; `ade20k` (true by default),
            `folders` and `fiftyone` (false) take either, without labelmap.txt. In `ade20k` false adds a first
            class `background`.
        ignore_index: value of ignored pixels in the files; by default 255, or 65535 above 255 classes.
        whole: all images of a folder without splits, whatever the split.

    Raises:
        DataError: another layout, a missing label map, or other classes.
        ConfigError: a value that the layout does not take.
    """
    given = root
    chosen, root = choose_layout(root, layout)
    try:
        class_names = resolve_class_names(chosen, root, classes, reduce_zero_label)
        pairs = find_pairs(chosen, root, split, whole)
    except DataError as error:
        found = find_layout(given)
        if found is None or found[0].name == chosen.name:
            raise
        name = found[0].name
        hint = f"it looks like the layout {name} (train: --segment.layout {name}, others: --layout {name})"
        raise DataError(f"{error}; {hint}") from error
    if pairs.errors:
        more = f" ({len(pairs.errors) - 1:,} more; metaformer data check lists all)"
        raise DataError(pairs.errors[0] + (more if len(pairs.errors) > 1 else ""))
    table = class_names.table(pairs.encoding, ignore_index)
    return SegmentationFolder(pairs, class_names.names, table, chosen.name)


def open_labeled(
    config: TrainConfig, split: str, layout: str | None = None, whole: bool = False
) -> SegmentationFolder:
    """Open a split of a run's data set; its layout is the run's own if none is given.

    Raises:
        DataError: another layout.
    """
    options = config.segment
    return open_segmentation(
        config.data.root,
        split,
        layout or options.layout,
        classes=options.class_names,
        reduce_zero_label=options.reduce_zero_label,
        whole=whole,
    )


def open_parts(
    config: TrainConfig, layout: str | None = None
) -> tuple[SegmentationFolder, SegmentationFolder] | None:
    """Training and held-out part of a run's data, where it divides them itself (`data.val_fraction`).

    Raises:
        ConfigError: an expression for groups that is none.
        DataError: another layout, or a part without images.
    """
    if config.data.val_fraction is None:
        return None
    whole = open_labeled(config, config.data.train, layout, whole=True)
    return divide_run(config, whole, whole.labels)


class SegmentationDataset(AugmentedDataset):
    """Augmented images with their label maps.

    Args:
        source: images and label maps.
        transform: joint transform of an image and its label map; see `AugmentedDataset`.
        seed: the run's seed.
        background: color that transparent pixels are blended on.
    """

    source: SegmentationFolder
    transform: JointTransform  # type: ignore[assignment]  # of two arguments

    def __init__(
        self,
        source: SegmentationFolder,
        transform: JointTransform,
        seed: int = 0,
        background: Color | None = None,
    ) -> None:
        super().__init__(source, transform, seed, background)  # type: ignore[arg-type]

    def __getitem__(self, sample: Sample) -> Item:
        """Image (3, h, w), label map (h, w) and index of a sample.

        Raises:
            BadImage: image or label map cannot be read, or their sizes differ.
        """
        image, labels = self.source.pair(sample.index, self.background)
        with seeded(sample_seed(self.seed, sample)):
            return *self.transform(image, labels), sample.index
