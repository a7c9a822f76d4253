"""`metaformer data check` where images have label maps."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from metaformer.data.image import image_size
from metaformer.data.scan import ImageInfo, digest, inspect, reason, scan, scan_bad
from metaformer.errors import BadImage, DataError
from metaformer.tasks.check import CheckReport, Finding, quiet
from metaformer.tasks.segmentation.class_names import Naming, name_classes
from metaformer.tasks.segmentation.dataset import SegmentationFolder
from metaformer.tasks.segmentation.label_map import count, read_label_map
from metaformer.tasks.segmentation.layouts import Layout, choose_layout
from metaformer.tasks.segmentation.pairs import find_pairs


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
        splits: their names; the first is the one to train on.
        workers: processes that read (default: one per core).
        progress: show a progress bar.
        layout: how the data set lies on disk; `auto` recognizes it.
        class_names: file of class names, one a line, where the data set brings none.
        reduce_zero_label: whether 0 in label maps is no class (default: as the layout has it; yes in ade20k).

    Raises:
        ConfigError: a layout that there is not, or a value that it does not have.
    """
    zero = None if reduce_zero_label is None else reduce_zero_label == "yes"
    check = _Check(workers, progress)
    with quiet():
        try:
            form, home = choose_layout(root, layout)
            naming = name_classes(form, home, class_names, zero)
        except DataError as error:
            check.add("error", "layout", str(error))
            splits = ()
        for split in splits:
            check.split(form, home, naming, split)
    return CheckReport(str(root), tuple(check.summaries), tuple(dict.fromkeys(check.findings)))


@dataclass(frozen=True)
class ClassSummary:
    """How much there is of a class."""

    pixels: int
    images: int
    """How many images show it."""


@dataclass(frozen=True)
class LabelSummary:
    """Images with label maps of one split."""

    name: str
    images: int
    unreadable: int
    """Images that cannot be used, or whose label map cannot."""
    per_class: dict[str, ClassSummary]
    ignored: float
    """Share of the pixels that do not count."""
    narrowest: tuple[int, int]
    """Width and height of the image with the fewest pixels."""
    median: tuple[int, int]
    widest: tuple[int, int]
    """Width and height of the image with the most pixels."""

    def text(self) -> str:
        """Give a line."""
        sizes = " to ".join(f"{w}x{h}" for w, h in dict.fromkeys((self.narrowest, self.widest)))
        bad = f" ({self.unreadable:,} unusable)" if self.unreadable else ""
        shown = sum(one.images > 0 for one in self.per_class.values())
        return (
            f"{self.name}: {self.images:,} images{bad} with label maps of {shown:,} of "
            f"{len(self.per_class):,} classes; {100 * self.ignored:.1f} % of the pixels ignored; "
            f"sizes {sizes}, median {self.median[0]}x{self.median[1]}"
        )


class _Check:
    def __init__(self, workers: int | None, progress: bool) -> None:
        self.workers, self.progress = workers, progress
        self.findings: list[Finding] = []
        self.summaries: list[LabelSummary] = []
        self.known: dict[bytes, str] | None = None
        """Name of the training image with these pixels, once training has been looked at."""

    def add(self, grade: Literal["error", "warning"], kind: str, text: str) -> None:
        self.findings.append(Finding(grade, kind, text))

    def split(self, form: Layout, home: Path, naming: Naming, name: str) -> None:
        """Look at a split; the first is the training's."""
        try:
            pairs = find_pairs(form, home, name)
        except DataError as error:
            return self.add("error", "layout", str(error))
        for fault in pairs.faults:
            self.add("error", "layout", fault)
        for file in pairs.unused:
            self.add("warning", "ignored", file)
        folder = SegmentationFolder(pairs, naming.names, naming.table(pairs.numbers, None), form.name)
        seen = scan(folder, workers=self.workers, label=name, progress=self.progress, read=read_pair)
        for one in seen:
            self._pair(folder, one)
        self._copies(folder, seen)
        summary = summarize(name, folder.classes, seen)
        self.summaries.append(summary)
        if len(self.summaries) == 1:
            self._classes(folder, summary)

    def _pair(self, folder: SegmentationFolder, seen: ImageInfo) -> None:
        image, label_map = folder.path(seen.index), folder.label_path(seen.index)
        if seen.error:
            self.add("error", "unreadable", f"{image}: {seen.error}")
        elif seen.animated:
            self.add("warning", "animated", f"{image}: animated, only its first frame is used")
        if seen.label_error:
            self.add("error", "label map", f"{label_map}: {seen.label_error}")
        elif seen.labels is not None and not seen.labels.pixels:
            self.add(
                "warning", "unlabeled", f"{label_map}: every pixel is ignored, nothing is learned from it"
            )

    def _copies(self, folder: SegmentationFolder, seen: Sequence[ImageInfo]) -> None:
        """Tell of the same pixels with two label maps, and in training and validation."""
        here: dict[bytes, str] = {}
        labels: dict[bytes, bytes] = {}
        for one in seen:
            if one.error or one.labels is None:
                continue
            name = str(folder.path(one.index))
            other = here.setdefault(one.digest, name)
            if labels.setdefault(one.digest, one.labels.digest) != one.labels.digest:
                same = f"{name}: the same image as {other}, with another label map"
                self.add("warning", "contradiction", same)
            if self.known is not None and one.digest in self.known:
                same = f"{name}: the same image as {self.known[one.digest]} of the training split"
                self.add("warning", "leak", same)
        if self.known is None:
            self.known = here

    def _classes(self, folder: SegmentationFolder, summary: LabelSummary) -> None:
        """Tell of classes that cannot be learned."""
        if len(folder.classes) < 2:
            one = f"{folder.folder}: only one class, {folder.classes[0]!r}: training needs at least two"
            self.add("error", "one class", one)
        absent = [name for name, found in summary.per_class.items() if not found.pixels]
        if absent:
            names = ", ".join(repr(name) for name in absent[:10])
            more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
            self.add("warning", "absent", f"{folder.folder}: no pixel of {names}{more}: never learned")


def check_segmentation(
    folder: SegmentationFolder,
    *,
    part: tuple[int, int] = (0, 1),
    skip_bad: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> None:
    """Look at every label map: that it can be read, is as large as its image, and holds known classes only.

    Of the images themselves the headers alone are read.

    Args:
        folder: the data.
        part: which share to look at, and of how many: a process's rank and the number of processes.
        skip_bad: let a few bad ones pass, which a training that leaves out bad images will then name.
        workers: processes that read; one per core when not given.
        progress: show a bar on stderr.

    Raises:
        BadImage: the first that cannot be used; the message says how many more there are.
        ConfigError: fewer than one process.
    """
    label = f"label maps of {folder.split}"
    bad = scan_bad(
        folder, read_labels, label, part=part, skip_bad=skip_bad, workers=workers, progress=progress
    )
    if not bad:
        return
    first = bad[0]
    path = folder.path(first.index) if first.error else folder.label_path(first.index)
    more = f" (and {len(bad) - 1:,} more bad files; metaformer data check tells all)" if len(bad) > 1 else ""
    raise BadImage(path, (first.error or first.label_error) + more)


@dataclass(frozen=True, slots=True)
class LabelInfo:
    """What a scan found out about one label map: `ImageInfo.labels`."""

    digest: bytes
    """Hash of the numbers."""
    pixels: dict[int, int]
    """Pixels of each class that has any."""
    ignored: int
    """Pixels that are ignored."""


def read_labels(folder: SegmentationFolder, index: int) -> ImageInfo:
    """Read a label map, and of its image the header."""
    try:
        size = image_size(folder.path(index))
    except DataError as error:
        return ImageInfo(index, error=reason(error))
    _, trouble = _labels(folder, index, size, hashed=False)
    return ImageInfo(index, *size, label_error=trouble)


def read_pair(folder: SegmentationFolder, index: int) -> ImageInfo:
    """Read an image and its label map."""
    seen = inspect(folder, index)
    labels, trouble = _labels(folder, index, None if seen.error else (seen.width, seen.height))
    return ImageInfo(index, seen.width, seen.height, seen.digest, seen.animated, seen.error, labels, trouble)


def _labels(
    folder: SegmentationFolder, index: int, size: tuple[int, int] | None, hashed: bool = True
) -> tuple[LabelInfo | None, str]:
    """What a label map holds, and what is wrong with it."""
    try:
        numbers = read_label_map(folder.label_path(index))
    except DataError as error:
        return None, reason(error)
    own = numbers.shape[1], numbers.shape[0]
    counts = count(numbers)
    faults = [folder.table.complaint(counts), folder.size_mismatch(index, own, size) if size else ""]
    pixels, ignored = folder.table.pixels(counts)
    present = {label: many for label, many in enumerate(pixels) if many}
    seen = LabelInfo(digest(own, numbers.tobytes()) if hashed else b"", present, ignored)
    return seen, "; ".join(fault for fault in faults if fault)


def summarize(name: str, classes: Sequence[str], seen: Sequence[ImageInfo]) -> LabelSummary:
    """Sum up what was seen of a split."""
    pixels: Counter[int] = Counter()
    images: Counter[int] = Counter()
    ignored = 0
    for one in seen:
        if one.labels is not None:
            pixels.update(one.labels.pixels)
            images.update(one.labels.pixels.keys())
            ignored += one.labels.ignored
    good = [(one.width, one.height) for one in seen if not one.error]
    sizes = sorted(good, key=lambda size: size[0] * size[1]) or [(0, 0)]
    return LabelSummary(
        name,
        len(seen),
        sum(bool(one.error or one.label_error) for one in seen),
        {label: ClassSummary(pixels[place], images[place]) for place, label in enumerate(classes)},
        ignored / max(1, ignored + pixels.total()),
        sizes[0],
        sizes[len(sizes) // 2],
        sizes[-1],
    )
