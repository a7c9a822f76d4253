"""Detection data set: images with annotated objects."""

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, Self

import torch
from PIL import Image
from torch import Tensor

from metaformer.color import Color
from metaformer.config import TrainConfig
from metaformer.data.class_lists import Names, palette_for
from metaformer.data.dataset import AugmentedDataset, BadSample, Batch, Item, seeded
from metaformer.data.divide import rarest_labels
from metaformer.data.image import read_image
from metaformer.data.sampler import Sample, sample_seed
from metaformer.errors import BadImage, DataError
from metaformer.models.detection.structures import Targets
from metaformer.tasks.base import divide_run
from metaformer.tasks.detection.formats.annotations import Annotations
from metaformer.tasks.detection.formats.coco import read_coco
from metaformer.tasks.detection.formats.layouts import SplitPaths, find_layout, find_split
from metaformer.tasks.detection.formats.voc import read_voc
from metaformer.tasks.detection.formats.yolo import read_yolo
from metaformer.tasks.detection.instances import Instance
from metaformer.tasks.detection.transforms import DetectionTransform, pad_images, pad_targets

Reader = Callable[[SplitPaths, Names, bool | None, bool], Annotations]
READERS: Final[dict[str, Reader]] = {"coco": read_coco, "voc": read_voc, "yolo": read_yolo}
"""Reader of the annotations of each layout."""
_BAD_SHARE: Final = 1e-3
"""Largest share of unusable objects that `on_bad="skip"` leaves out; more is an error."""
_log = logging.getLogger(__name__)


class DetectionFolder:
    """Images of one split with their objects; `open_detection` makes it.

    Args:
        paths: paths of the split.
        annotations: its images and objects.
    """

    def __init__(self, paths: SplitPaths, annotations: Annotations) -> None:
        self.folder, self.split, self.layout = paths.images, paths.split, paths.layout
        self.annotation_path = paths.labels
        """The annotation file, or the folder of such files."""
        self.annotations = annotations
        self.classes, self.category_ids = annotations.classes, annotations.category_ids
        self.objects = annotations.objects
        self.palette: tuple[Color, ...] = palette_for(self.classes)
        """Color of each class."""

    def __len__(self) -> int:
        return len(self.annotations.files)

    def subset(self, wanted: Sequence[bool]) -> Self:
        """The images that are wanted, with their objects."""
        part = copy.copy(self)
        part.annotations = self.annotations.subset(wanted)
        part.objects = part.annotations.objects
        return part

    @property
    def labels(self) -> Sequence[int]:
        """Zeros: classes are those of objects, not of images."""
        return [0] * len(self)

    @property
    def has_masks(self) -> bool:
        """Whether every object has an outline, and outlines were asked for."""
        return bool(self.objects.outlined.all())

    def path(self, index: int) -> Path:
        """Path of an image."""
        return self.folder / self.annotations.files[index]

    def image_id(self, index: int) -> int:
        """COCO's `image_id`; counted from 1 in other formats."""
        return int(self.annotations.ids[index])

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of an image according to its annotations."""
        width, height = self.annotations.sizes[index].tolist()
        return width, height

    def aspect(self, index: int) -> float:
        """Width / height of an image."""
        width, height = self.size(index)
        return width / height

    def image(self, index: int, background: Color | None = None) -> Image.Image:
        """Image as RGB.

        Raises:
            BadImage: it cannot be read.
        """
        return read_image(self.path(index), background=background)

    def instances(self, index: int) -> tuple[Instance, ...]:
        """Objects of an image."""
        return tuple(self.objects.instance(row) for row in self.objects.of(index).tolist())

    def example(
        self, index: int, masks: bool = False, background: Color | None = None
    ) -> tuple[Image.Image, Targets]:
        """Image as RGB and its objects, with masks (N, H, W) if asked for.

        Raises:
            BadImage: the image cannot be read, or has another size than its annotations say.
            DataError: objects have no outline, or the data set was opened without masks.
        """
        image = self.image(index, background)
        if error := self.size_mismatch(index, image.size):
            raise BadImage(self.path(index), error)
        rows = self.objects.of(index)
        if masks and not self.objects.outlined[rows].all():
            raise DataError(f"{self.path(index)}: objects without masks: open the data with masks=True")
        size = (image.height, image.width)
        return image, Targets(
            boxes=torch.from_numpy(self.objects.corners(rows)).float(),
            labels=torch.from_numpy(self.objects.labels[rows]).long(),
            masks=torch.from_numpy(self.objects.masks(rows, size)) if masks else None,
            crowd=torch.from_numpy(self.objects.crowd[rows]),
        )

    def check_any(self) -> None:
        """Refuse a split that can neither be trained nor evaluated on.

        Raises:
            DataError: it has no object, or crowds alone.
        """
        if self.objects.crowd.all():
            what = "no object but crowds" if len(self.objects) else "no object at all"
            raise DataError(f"{self.annotation_path}: {what} in the split {self.split!r}: add annotations")

    def size_mismatch(self, index: int, image: tuple[int, int]) -> str:
        """How an image's width and height differ from those in its annotations; empty if they do not."""
        annotated = self.size(index)
        if annotated == image:
            return ""
        text = f"is {image[0]}x{image[1]}, but {annotated[0]}x{annotated[1]} in {self.annotation_path}"
        if annotated == image[::-1]:
            return f"{text}: images are rotated by their EXIF orientation, and boxes must be, too"
        return f"{text}: boxes are of another image, or of another size of it"


def open_detection(
    root: str | Path,
    split: str,
    layout: str = "auto",
    *,
    classes: Names = None,
    masks: bool | None = False,
    on_bad: Literal["error", "skip"] = "error",
    clip_boxes: bool = False,
    whole: bool = False,
) -> DetectionFolder:
    """Open a split; all annotations are read and validated, images are not.

    Args:
        root: the data set.
        split: its name; `train` and `val` are translated to the layout's own.
        layout: `coco`, `voc`, `yolo`, or `auto` to recognize it.
        classes: class names, or a text file of them, one a line, in the order of labels: those of a
            checkpoint, or where the data set brings none. The data set's own must be among them.
        masks: keep the outlines, of which every object must have one; None keeps those that there are.
        on_bad: raise an error for unusable objects, or leave out up to 0.1 % of all and log each. COCO's
            train2017 has two, of height 0.
        clip_boxes: clip boxes and outlines over the border of their image to it, instead of an error.
        whole: of a folder without splits take all images, whichever split is asked for.

    Raises:
        DataError: another layout, a missing image, or an unusable annotation; the message names the first and
            counts the others.
        UnknownName: an unknown layout.
    """
    paths = find_split(*find_layout(root, layout), split, whole)
    annotations = READERS[paths.layout](paths, classes, masks, clip_boxes)
    of_objects = [fault for fault in annotations.faults if fault.one_object]
    faults = annotations.faults
    if on_bad == "skip" and len(of_objects) <= _BAD_SHARE * (len(of_objects) + len(annotations.objects)):
        faults = tuple(fault for fault in faults if not fault.one_object)
        for fault in of_objects:
            _log.warning("left out: %s", fault.text)
    if faults:
        more = f" ({len(faults) - 1:,} more such; metaformer data check lists all)"
        raise DataError(faults[0].text + (more if len(faults) > 1 else ""))
    if not annotations.files:
        raise DataError(f"{paths.labels}: no images")
    return DetectionFolder(paths, replace(annotations, faults=()))


def open_annotated(
    config: TrainConfig,
    split: str,
    on_bad: Literal["error", "skip"] = "error",
    classes: Sequence[str] | None = None,
    *,
    layout: str | None = None,
    whole: bool = False,
) -> DetectionFolder:
    """Open a split of a run's data set; `on_bad` says what to do about objects that cannot be used.

    Its classes are those of the file that the run names, or `classes`, or its own; its layout is the run's
    own if none is given.

    Raises:
        DataError: it is not laid out as it should be.
    """
    detect = config.detect
    return open_detection(
        config.data.root,
        split,
        layout or detect.layout,
        classes=detect.class_names or classes,
        masks=detect.head == "mask_rcnn",
        on_bad=on_bad,
        clip_boxes=detect.clip_boxes,
        whole=whole,
    )


def open_parts(
    config: TrainConfig, layout: str | None = None
) -> tuple[DetectionFolder, DetectionFolder] | None:
    """Training and held-out part of a run's data, where it divides them itself (`data.val_fraction`).

    Raises:
        ConfigError: an expression for groups that is none.
        DataError: the data are not laid out as they should be, or a part has no images.
    """
    data = config.data
    if data.val_fraction is None:
        return None
    whole = open_annotated(config, data.train, data.on_bad_image, layout=layout, whole=True)
    images, labels = whole.objects.images.tolist(), whole.objects.labels.tolist()
    return divide_run(config, whole, rarest_labels(images, labels, len(whole)))


class DetectionDataset(AugmentedDataset):
    """Augmented images with their objects, which are transformed together.

    Args:
        source: images and objects.
        transform: maps an RGB image and its objects to a tensor and the objects on that.
        seed: the run's seed.
        masks: with the objects' masks.
        background: color that transparent pixels are blended on.
    """

    source: DetectionFolder
    transform: DetectionTransform  # type: ignore[assignment]  # takes both

    def __init__(
        self,
        source: DetectionFolder,
        transform: DetectionTransform,
        seed: int = 0,
        background: Color | None = None,
        *,
        masks: bool = False,
    ) -> None:
        super().__init__(source, transform, seed, background)  # type: ignore[arg-type]
        self.masks = masks

    def stack(
        self,
        images: tuple[Tensor, ...],
        labels: tuple[Targets, ...],
        indices: Tensor,
        bad: tuple[BadSample, ...],
    ) -> Batch:
        """Batch of images of any size, padded with 0 on the right and below."""
        batch = pad_images(images)
        sizes = tuple((image.shape[1], image.shape[2]) for image in images)
        targets = pad_targets(labels, (batch.shape[2], batch.shape[3]))
        return Batch(batch, torch.zeros(len(indices), dtype=torch.int64), indices, bad, targets, sizes)

    def __getitem__(self, sample: Sample) -> Item:
        """Image (3, h, w), its objects in pixels of that, and its index.

        Raises:
            BadImage: the image cannot be read, or has another size than its annotations say.
        """
        image, targets = self.source.example(sample.index, self.masks, self.background)
        with seeded(sample_seed(self.seed, sample)):
            return *self.transform(image, targets), sample.index
