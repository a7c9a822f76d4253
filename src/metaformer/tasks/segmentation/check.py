"""Checks of segmentation data sets: `metaformer data check`, and the validation before training."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from metaformer.data.image import image_size
from metaformer.data.scan import ImageInfo, digest, inspect, reason, scan, scan_bad
from metaformer.errors import BadImage, DataError
from metaformer.tasks.check import CheckReport, Finding, quiet
from metaformer.tasks.segmentation.dataset import SegmentationFolder
from metaformer.tasks.segmentation.labels import ClassNames, count_values, read_label_map, resolve_class_names
from metaformer.tasks.segmentation.layouts import Layout, choose_layout, find_pairs


def check_label_maps(
    root: str | Path,
    splits: Sequence[str] = ("train", "val"),
    *,
    workers: int | None = None,
    progress: bool = True,
    layout: Literal["auto", "ade20k", "voc", "cityscapes", "coco_stuff", "folders"] = "auto",
    class_names: Sequence[str] | str | Path | None = None,
    reduce_zero_label: Literal["yes", "no"] | None = None,
) -> CheckReport:
    """Read all images and label maps of a data set and report everything that is wrong with it.

    Args:
        root: the data set.
        splits: their names; the first is the training split.
        workers: processes that read (default: one per core).
        progress: show a progress bar.
        layout: how the data set lies on disk; `auto` recognizes it.
        class_names: file of class names, one per line, for a data set without.
        reduce_zero_label: whether value 0 in label maps is ignored (default: the layout's; yes in ade20k).

    Raises:
        ConfigError: an unknown layout, or a value that it does not take.
    """
    zero = None if reduce_zero_label is None else reduce_zero_label == "yes"
    check = _Check(workers, progress)
    with quiet():
        try:
            chosen, folder = choose_layout(root, layout)
            names = resolve_class_names(chosen, folder, class_names, zero)
        except DataError as error:
            check.add("error", "layout", str(error))
            splits = ()
        for split in splits:
            check.split(chosen, folder, names, split)
    return CheckReport(str(root), tuple(check.summaries), tuple(dict.fromkeys(check.findings)))


@dataclass(frozen=True)
class ClassSummary:
    """Size of a class."""

    pixels: int
    images: int
    """Images with pixels of it."""


@dataclass(frozen=True)
class LabelSummary:
    """Images and label maps of a split."""

    name: str
    images: int
    unreadable: int
    """Images that cannot be used, or whose label map cannot."""
    per_class: dict[str, ClassSummary]
    ignored: float
    """Fraction of ignored pixels."""
    narrowest: tuple[int, int]
    """Width and height of the image with the fewest pixels."""
    median: tuple[int, int]
    widest: tuple[int, int]
    """Width and height of the image with the most pixels."""

    def text(self) -> str:
        """One line."""
        sizes = " to ".join(f"{w}x{h}" for w, h in dict.fromkeys((self.narrowest, self.widest)))
        bad = f" ({self.unreadable:,} unusable)" if self.unreadable else ""
        present = sum(found.images > 0 for found in self.per_class.values())
        return (
            f"{self.name}: {self.images:,} images{bad} with label maps of {present:,} of "
            f"{len(self.per_class):,} classes; {100 * self.ignored:.1f} % of the pixels ignored; "
            f"sizes {sizes}, median {self.median[0]}x{self.median[1]}"
        )


class _Check:
    def __init__(self, workers: int | None, progress: bool) -> None:
        self.workers, self.progress = workers, progress
        self.findings: list[Finding] = []
        self.summaries: list[LabelSummary] = []
        self.training: dict[bytes, str] | None = None
        """Training images by the digest of their pixels; None until the training split is done."""

    def add(self, grade: Literal["error", "warning"], kind: str, text: str) -> None:
        self.findings.append(Finding(grade, kind, text))

    def split(self, layout: Layout, root: Path, names: ClassNames, split: str) -> None:
        """Check a split; the first is the training split."""
        try:
            pairs = find_pairs(layout, root, split)
        except DataError as error:
            return self.add("error", "layout", str(error))
        for text in pairs.errors:
            self.add("error", "layout", text)
        for file in pairs.unused:
            self.add("warning", "ignored", file)
        folder = SegmentationFolder(pairs, names.names, names.table(pairs.encoding, None), layout.name)
        infos = scan(folder, workers=self.workers, label=split, progress=self.progress, read=read_pair)
        for info in infos:
            self._pair(folder, info)
        self._duplicates(folder, infos)
        summary = summarize(split, folder.classes, infos)
        self.summaries.append(summary)
        if len(self.summaries) == 1:
            self._classes(folder, summary)

    def _pair(self, folder: SegmentationFolder, info: ImageInfo) -> None:
        image, label_map = folder.path(info.index), folder.label_path(info.index)
        if info.error:
            self.add("error", "unreadable", f"{image}: {info.error}")
        elif info.animated:
            self.add("warning", "animated", f"{image}: animated, only its first frame is used")
        if info.label_error:
            self.add("error", "label map", f"{label_map}: {info.label_error}")
        elif info.labels is not None and not info.labels.pixels:
            self.add("warning", "unlabeled", f"{label_map}: all pixels are ignored")

    def _duplicates(self, folder: SegmentationFolder, infos: Sequence[ImageInfo]) -> None:
        """Images that occur twice: with two label maps, or in training and validation."""
        images: dict[bytes, str] = {}
        labels: dict[bytes, bytes] = {}
        for info in infos:
            if info.error or info.labels is None:
                continue
            name = str(folder.path(info.index))
            other = images.setdefault(info.digest, name)
            if labels.setdefault(info.digest, info.labels.digest) != info.labels.digest:
                same = f"{name}: the same image as {other}, with another label map"
                self.add("warning", "contradiction", same)
            if self.training is not None and info.digest in self.training:
                same = f"{name}: the same image as {self.training[info.digest]} of the training split"
                self.add("warning", "leak", same)
        if self.training is None:
            self.training = images

    def _classes(self, folder: SegmentationFolder, summary: LabelSummary) -> None:
        """Classes that cannot be learned."""
        if len(folder.classes) < 2:
            one = f"{folder.folder}: only one class, {folder.classes[0]!r}: training needs at least two"
            self.add("error", "one class", one)
        absent = [name for name, found in summary.per_class.items() if not found.pixels]
        if absent:
            names = ", ".join(repr(name) for name in absent[:10])
            more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
            self.add("warning", "absent", f"{folder.folder}: no pixel of {names}{more}: never learned")


def validate_label_maps(
    folder: SegmentationFolder,
    *,
    part: tuple[int, int] = (0, 1),
    skip_bad: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Check before training that every label map is readable, of its image's size, and has known values.

    Of the images only the headers are read.

    Args:
        folder: the data.
        part: rank and number of the processes that share the work.
        skip_bad: accept a few bad files, which training with `on_bad_image: skip` leaves out.
        workers: processes that read; one per core by default.
        progress: show a bar on stderr.

    Raises:
        BadImage: the first bad file; the message counts the others.
        ConfigError: `part` is out of range.
    """
    label = f"label maps of {folder.split}"
    bad = scan_bad(
        folder, read_labels, label, part=part, skip_bad=skip_bad, workers=workers, progress=progress
    )
    if not bad:
        return
    first = bad[0]
    path = folder.path(first.index) if first.error else folder.label_path(first.index)
    more = f" (and {len(bad) - 1:,} more bad files; metaformer data check lists all)" if len(bad) > 1 else ""
    raise BadImage(path, (first.error or first.label_error) + more)


@dataclass(frozen=True, slots=True)
class LabelInfo:
    """What a scan found out about a label map: `ImageInfo.labels`."""

    digest: bytes
    """Hash of the values."""
    pixels: dict[int, int]
    """Pixels of each class that has any."""
    ignored: int
    """Ignored pixels."""


def read_labels(folder: SegmentationFolder, index: int) -> ImageInfo:
    """Read a label map and the header of its image."""
    try:
        size = image_size(folder.path(index))
    except DataError as error:
        return ImageInfo(index, error=reason(error))
    _, label_error = _label_info(folder, index, size, hashed=False)
    return ImageInfo(index, *size, label_error=label_error)


def read_pair(folder: SegmentationFolder, index: int) -> ImageInfo:
    """Read an image and its label map."""
    info = inspect(folder, index)
    labels, label_error = _label_info(folder, index, None if info.error else (info.width, info.height))
    return replace(info, labels=labels, label_error=label_error)


def _label_info(
    folder: SegmentationFolder, index: int, size: tuple[int, int] | None, hashed: bool = True
) -> tuple[LabelInfo | None, str]:
    """Contents and errors of a label map; `size` is its image's (width, height)."""
    try:
        values = read_label_map(folder.label_path(index))
    except DataError as error:
        return None, reason(error)
    own = values.shape[1], values.shape[0]
    counts = count_values(values)
    errors = [folder.table.unknown_values(counts), folder.size_mismatch(index, own, size) if size else ""]
    pixels, ignored = folder.table.class_pixels(counts)
    present = {label: count for label, count in enumerate(pixels) if count}
    info = LabelInfo(digest(own, values.tobytes()) if hashed else b"", present, ignored)
    return info, "; ".join(filter(None, errors))


def summarize(name: str, classes: Sequence[str], infos: Sequence[ImageInfo]) -> LabelSummary:
    """Summary of the images and label maps of a split."""
    pixels: Counter[int] = Counter()
    images: Counter[int] = Counter()
    ignored = 0
    for info in infos:
        if info.labels is not None:
            pixels.update(info.labels.pixels)
            images.update(info.labels.pixels.keys())
            ignored += info.labels.ignored
    readable = [(info.width, info.height) for info in infos if not info.error]
    sizes = sorted(readable, key=lambda size: size[0] * size[1]) or [(0, 0)]
    return LabelSummary(
        name,
        len(infos),
        sum(bool(info.error or info.label_error) for info in infos),
        {label: ClassSummary(pixels[index], images[index]) for index, label in enumerate(classes)},
        ignored / max(1, ignored + pixels.total()),
        sizes[0],
        sizes[len(sizes) // 2],
        sizes[-1],
    )
