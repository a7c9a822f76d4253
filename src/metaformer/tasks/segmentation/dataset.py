"""A data set whose every image has a label map: a class for each pixel."""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor

from metaformer.data.class_lists import Color, palette_for
from metaformer.data.dataset import AugmentedDataset, Item, seeded
from metaformer.data.image import read_image
from metaformer.data.sampler import Sample, sample_seed
from metaformer.errors import BadImage, DataError
from metaformer.tasks.segmentation.class_names import name_classes
from metaformer.tasks.segmentation.label_map import LabelMap, LabelTable, read_label_map
from metaformer.tasks.segmentation.layouts import choose_layout
from metaformer.tasks.segmentation.pairs import Pairs, find_pairs


class SegmentationFolder:
    """Images and label maps of one split; `open_segmentation` makes it.

    Args:
        pairs: which files they are.
        classes: names of the classes.
        table: which number in the files is which class.
        layout: how the files lie.
    """

    def __init__(self, pairs: Pairs, classes: Sequence[str], table: LabelTable, layout: str) -> None:
        self.folder, self.split, self.layout, self.table = pairs.folder, pairs.split, layout, table
        self.classes: tuple[str, ...] = tuple(classes)
        self.palette: tuple[Color, ...] = palette_for(self.classes)
        """Red, green and blue of each class."""
        self.ignore_index: int = table.ignore_index
        """What `label_map` gives for pixels that do not count: 255, or 65535 above 255 classes."""
        self._pairs = pairs

    def __len__(self) -> int:
        return len(self._pairs.images)

    @property
    def labels(self) -> Sequence[int]:
        """One label per image, as `Source` wants it; all are 0, since classes are those of pixels."""
        return [0] * len(self)

    def path(self, index: int) -> Path:
        """Tell where an image lies."""
        return self._pairs.root / self._pairs.images[index]

    def label_path(self, index: int) -> Path:
        """Tell where an image's label map lies."""
        return self._pairs.root / self._pairs.label_maps[index]

    def image(self, index: int) -> Image.Image:
        """Read an image as RGB.

        Raises:
            BadImage: it cannot be read.
        """
        return read_image(self.path(index))

    def label_map(self, index: int) -> LabelMap:
        """Read a label map: (H, W) of classes, 0 to K − 1, or `ignore_index`.

        Raises:
            BadImage: it cannot be read, is no label map, or holds numbers that are no class's.
        """
        path = self.label_path(index)
        return self.table.translate(read_label_map(path), path)

    def pair(self, index: int) -> tuple[Image.Image, LabelMap]:
        """Read an image and its label map.

        Raises:
            BadImage: one cannot be used, or they differ in size.
        """
        image, labels = self.image(index), self.label_map(index)
        if trouble := self.size_mismatch(index, (labels.shape[1], labels.shape[0]), image.size):
            raise BadImage(self.label_path(index), trouble)
        return image, labels

    def size_mismatch(self, index: int, labels: tuple[int, int], image: tuple[int, int]) -> str:
        """Say how the sizes of a label map and its image differ; empty where they do not."""
        if labels == image:
            return ""
        sizes = f"is {labels[0]}x{labels[1]} and its image {self.path(index)} {image[0]}x{image[1]}"
        if labels == image[::-1]:
            return (
                f"{sizes}: images are turned as their EXIF orientation says, label maps are not; "
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
) -> SegmentationFolder:
    """Open the images and label maps of a split; nothing is read but their names.

    Args:
        root: the data set.
        split: its name; `train` and `val` are translated to what the layout calls them.
        layout: `ade20k`, `voc`, `cityscapes`, `coco_stuff`, `folders`, or `auto` to recognize it.
        classes: names of the classes, or a text file of them, one a line: those of a checkpoint, or where
            the data set brings none. The data set's own must be the same.
        reduce_zero_label: whether 0 in the files is no class, and 1 the first; only `ade20k` (where that is
            so when not given) and `folders` (not so) can have it either way. Where ADE20K's layout keeps 0,
            it is the first class, `background`.
        ignore_index: number in the files of pixels that do not count; 255, or 65535 above 255 classes, when
            not given.

    Raises:
        DataError: the layout is another one, a label map is missing, or the classes do not fit.
        ConfigError: a value that the layout does not have.
    """
    form, home = choose_layout(root, layout)
    naming = name_classes(form, home, classes, reduce_zero_label)
    pairs = find_pairs(form, home, split)
    if pairs.faults:
        more = f" ({len(pairs.faults) - 1:,} more such; metaformer data check tells all)"
        raise DataError(pairs.faults[0] + (more if len(pairs.faults) > 1 else ""))
    return SegmentationFolder(pairs, naming.names, naming.table(pairs.numbers, ignore_index), form.name)


PairTransform = Callable[[Image.Image, LabelMap], tuple[Tensor, Tensor]]


class SegmentationDataset(AugmentedDataset):
    """The same of images with their label maps, which are transformed together.

    Args:
        source: the images and label maps.
        transform: RGB image and label map (H, W) to two tensors; see `AugmentedDataset`.
        seed: the run's seed.
    """

    transform: PairTransform  # type: ignore[assignment]  # takes both

    def __init__(self, source: SegmentationFolder, transform: PairTransform, seed: int = 0) -> None:
        super().__init__(source, transform, seed)  # type: ignore[arg-type]
        self.pairs = source

    def __getitem__(self, sample: Sample) -> Item:
        """Make one sample: its image (3, h, w), its label map (H, W) and its index.

        Raises:
            BadImage: image or label map cannot be read, or they do not fit each other.
        """
        image, labels = self.pairs.pair(sample.index)
        with seeded(sample_seed(self.seed, sample)):
            return *self.transform(image, labels), sample.index
