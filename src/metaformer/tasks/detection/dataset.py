"""A data set whose images have objects: boxes with classes, and their outlines."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import torch
from PIL import Image
from torch import Tensor

from metaformer.data.class_lists import Color, Names, palette_for
from metaformer.data.dataset import AugmentedDataset, BadSample, Batch, Item, seeded
from metaformer.data.image import read_image
from metaformer.data.sampler import Sample, sample_seed
from metaformer.errors import BadImage, DataError
from metaformer.models.detection.structures import Targets
from metaformer.tasks.detection.formats.annotations import Annotated
from metaformer.tasks.detection.formats.coco import read_coco
from metaformer.tasks.detection.formats.layouts import SplitPaths, choose_detection_layout, find_place
from metaformer.tasks.detection.formats.voc import read_voc
from metaformer.tasks.detection.formats.yolo import read_yolo
from metaformer.tasks.detection.instances import Instance
from metaformer.tasks.detection.preprocess import stack, stack_targets
from metaformer.tasks.detection.transforms import SceneTransform

Reader = Callable[[SplitPaths, Names, bool | None], Annotated]


READERS: Final[dict[str, Reader]] = {"coco": read_coco, "voc": read_voc, "yolo": read_yolo}


_FEW: Final = 1e-3
"""Share of the objects that cannot be used up to which leaving them out, where asked for, is a remedy."""


_log = logging.getLogger(__name__)


class DetectionFolder:
    """Images of one split with their objects; `open_detection` makes it.

    Args:
        place: where the files lie.
        annotated: what they say.
    """

    def __init__(self, place: SplitPaths, annotated: Annotated) -> None:
        self.folder, self.split, self.layout = place.images, place.split, place.layout
        self.annotations = place.labels
        """The file of annotations, or their folder."""
        self.classes, self.category_ids = annotated.classes, annotated.category_ids
        self.palette: tuple[Color, ...] = palette_for(self.classes)
        """Red, green and blue of each class."""
        self.objects = annotated.objects
        """All objects, packed."""
        self._files, self._sizes, self._ids = annotated.files, annotated.sizes, annotated.ids

    def __len__(self) -> int:
        return len(self._files)

    @property
    def labels(self) -> Sequence[int]:
        """One label per image, as `Source` wants it; all are 0, since classes are those of objects."""
        return [0] * len(self)

    @property
    def has_masks(self) -> bool:
        """Whether every object has an outline, and outlines were asked for."""
        return bool(self.objects.outlined.all())

    def path(self, index: int) -> Path:
        """Tell where an image lies."""
        return self.folder / self._files[index]

    def image_id(self, index: int) -> int:
        """Tell the number of an image: COCO's, or its place counted from 1."""
        return int(self._ids[index])

    def size(self, index: int) -> tuple[int, int]:
        """Tell the width and height of an image, as its annotations have it."""
        width, height = self._sizes[index].tolist()
        return width, height

    def aspect(self, index: int) -> float:
        """Tell the width of an image over its height."""
        width, height = self.size(index)
        return width / height

    def image(self, index: int) -> Image.Image:
        """Read an image as RGB.

        Raises:
            BadImage: it cannot be read.
        """
        return read_image(self.path(index))

    def instances(self, index: int) -> tuple[Instance, ...]:
        """Tell of an image's objects."""
        return tuple(self.objects.instance(row) for row in self.objects.of(index).tolist())

    def example(self, index: int, masks: bool = False) -> tuple[Image.Image, Targets]:
        """Read an image, and give its objects, with masks (N, H, W) where they are asked for.

        Raises:
            BadImage: the image cannot be read, or has another size than its annotations say.
            DataError: masks of a data set that was opened without, or has none.
        """
        image = self.image(index)
        if trouble := self.size_mismatch(index, image.size):
            raise BadImage(self.path(index), trouble)
        rows = self.objects.of(index)
        drawn = None
        if masks:
            if not self.objects.outlined[rows].all():
                raise DataError(f"{self.path(index)}: objects without masks: open the data with masks=True")
            drawn = torch.from_numpy(self.objects.masks(rows, (image.height, image.width)))
        return image, Targets(
            boxes=torch.from_numpy(self.objects.corners(rows)).float(),
            labels=torch.from_numpy(self.objects.labels[rows]).long(),
            masks=drawn,
            crowd=torch.from_numpy(self.objects.crowd[rows]),
        )

    def check_any(self) -> None:
        """Refuse a split that neither teaches nor measures anything.

        Raises:
            DataError: it has no object, or crowds alone.
        """
        if self.objects.crowd.all():
            what = "no object but crowds" if len(self.objects) else "no object at all"
            raise DataError(f"{self.annotations}: {what} in the split {self.split!r}: add annotations")

    def size_mismatch(self, index: int, image: tuple[int, int]) -> str:
        """Say how an image's size differs from what the annotations say; empty where it does not."""
        said = self.size(index)
        if said == image:
            return ""
        told = f"is {image[0]}x{image[1]}, but {said[0]}x{said[1]} as {self.annotations} has it"
        if said == image[::-1]:
            return f"{told}: images are turned as their EXIF orientation says, and boxes must be of that"
        return f"{told}: boxes are of another image, or of another size of it"

    def document(self) -> dict[str, Any]:
        """Give all annotations in COCO's form: boxes as in the file, classes in the order of labels."""
        images = [
            {"id": number, "file_name": name, "width": width, "height": height}
            for number, name, (width, height) in zip(
                self._ids.tolist(), self._files, self._sizes.tolist(), strict=True
            )
        ]
        categories = [
            {"id": number, "name": name} for number, name in zip(self.category_ids, self.classes, strict=True)
        ]
        every = ((index, row) for index in range(len(self)) for row in self.objects.of(index).tolist())
        annotations = [self._annotation(index, row) for index, row in every]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _annotation(self, index: int, row: int) -> dict[str, Any]:
        instance = self.objects.instance(row)
        outline = {} if instance.segmentation is None else {"segmentation": instance.segmentation}
        return {
            "id": instance.id,
            "image_id": self.image_id(index),
            "category_id": self.category_ids[instance.label],
            "bbox": self.objects.boxes[row].tolist(),
            "area": instance.area,
            "iscrowd": int(instance.crowd),
            **outline,
        }


def open_detection(
    root: str | Path,
    split: str,
    layout: str = "auto",
    *,
    classes: Names = None,
    masks: bool | None = False,
    on_bad: Literal["error", "skip"] = "error",
) -> DetectionFolder:
    """Open the images and objects of a split; all annotations are read and checked, and no image.

    Args:
        root: the data set.
        split: its name; `train` and `val` are translated to what the layout calls them.
        layout: `coco`, `voc`, `yolo`, or `auto` to recognize it.
        classes: names of the classes, or a text file of them, one a line, in the order of labels: those of a
            checkpoint, or where the data set brings none. The data set's own must be among them.
        masks: keep the outlines, of which every object must have one; None keeps those that there are.
        on_bad: what to do about objects that cannot be used: an error, or leave them out and log each, up to
            0.1 % of all. COCO's train2017 has two, of height 0.

    Raises:
        DataError: the layout is another one, an image is missing, or an annotation cannot be used; the
            message names the first and says how many more there are.
        UnknownName: there is no such layout.
    """
    place = find_place(*choose_detection_layout(root, layout), split)
    annotated = READERS[place.layout](place, classes, masks)
    single = [fault for fault in annotated.faults if fault.single]
    few = len(single) <= _FEW * (len(single) + len(annotated.objects))
    faults = annotated.faults
    if on_bad == "skip" and few:
        faults = tuple(fault for fault in faults if not fault.single)
        for fault in single:
            _log.warning("left out: %s", fault.text)
    if faults:
        more = f" ({len(faults) - 1:,} more such; metaformer data check lists all)"
        raise DataError(faults[0].text + (more if len(faults) > 1 else ""))
    if not annotated.files:
        raise DataError(f"{place.labels}: no images")
    return DetectionFolder(place, annotated)


class DetectionDataset(AugmentedDataset):
    """The same of images with the objects on them, which are transformed together.

    Args:
        source: the images and objects.
        transform: RGB image and its objects to a tensor and the objects on that; see `AugmentedDataset`.
        seed: the run's seed.
        masks: make the objects' masks, for those who learn from them.
    """

    transform: SceneTransform  # type: ignore[assignment]  # takes both

    def __init__(
        self, source: DetectionFolder, transform: SceneTransform, seed: int = 0, *, masks: bool = False
    ) -> None:
        super().__init__(source, transform, seed)  # type: ignore[arg-type]
        self.scenes, self.masks = source, masks

    def stack(
        self,
        images: tuple[Tensor, ...],
        labels: tuple[Targets, ...],
        indices: Tensor,
        bad: tuple[BadSample, ...],
    ) -> Batch:
        """Make a batch of scenes, filled up with 0 on the right and below to one size."""
        batch = stack(images)
        sizes = tuple((image.shape[1], image.shape[2]) for image in images)
        filled = stack_targets(labels, (batch.shape[2], batch.shape[3]))
        return Batch(batch, torch.zeros(len(indices), dtype=torch.int64), indices, bad, filled, sizes)

    def __getitem__(self, sample: Sample) -> Item:
        """Make one sample: its image (3, h, w), its objects in pixels of that, and its index.

        Raises:
            BadImage: the image cannot be read, or is of another size than its annotations say.
        """
        image, targets = self.scenes.example(sample.index, self.masks)
        with seeded(sample_seed(self.seed, sample)):
            return *self.transform(image, targets), sample.index
