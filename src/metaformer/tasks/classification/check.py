"""`metaformer data check`: all that is wrong with a data set, told at once and before a training finds it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from metaformer.data.folder import ImageFolder
from metaformer.data.scan import ImageInfo, scan
from metaformer.data.shards.index import Shards, damaged_shards, find_shards
from metaformer.data.shards.remote import is_remote
from metaformer.data.split import Split, open_split
from metaformer.errors import DataError
from metaformer.tasks.check import CheckReport, Finding, SplitSummary, quiet

UNEVEN: Final = 10
"""How many times as many images the largest class may have as the smallest before it is mentioned."""


def check_data_set(
    root: str | Path,
    splits: Sequence[str] = ("train", "val"),
    *,
    workers: int | None = None,
    progress: bool = True,
) -> CheckReport:
    """Read all of a data set and report everything that is wrong with it.

    Args:
        root: image folders, or shards of parquet or tar.
        splits: their names; the first is the one to train on, whose classes the others must have.
        workers: processes that read; one per core when not given.
        progress: show a bar on stderr.

    Raises:
        MissingPackage: reading shards needs a package that is not installed.
    """
    check = _Check(str(root), workers, progress)
    with quiet():
        for split in splits:
            check.split(split)
    return CheckReport(check.root, tuple(check.summaries), tuple(dict.fromkeys(check.findings)))


def recognize(root: str | Path) -> int:
    """How surely a folder holds images by class; see `TaskSpec.recognize`. Any may: nothing marks it."""
    return 1


class _Check:
    def __init__(self, root: str, workers: int | None, progress: bool) -> None:
        self.root, self.workers, self.progress = root, workers, progress
        self.findings: list[Finding] = []
        self.summaries: list[SplitSummary] = []
        self.classes: tuple[str, ...] | None = None
        self.known: dict[bytes, tuple[str, str]] = {}
        """Name and class of the training image with these pixels."""

    def error(self, kind: str, text: str) -> None:
        self.findings.append(Finding("error", kind, text))

    def warn(self, kind: str, text: str) -> None:
        self.findings.append(Finding("warning", kind, text))

    def split(self, name: str) -> None:
        """Look at a split; the first is the training's."""
        source = self._open(name)
        if source is None:
            return
        training = self.classes is None
        if training:
            self.classes = tuple(source.classes)
            if len(self.classes) < 2:
                self.error("one class", f"{source.folder}: only one class: training needs at least two")
        seen = scan(source, workers=self.workers, label=name, progress=self.progress)
        self._images(source, seen)
        self._copies(source, seen, training)
        self.summaries.append(self._summary(name, source, seen))

    def _open(self, name: str) -> Split | None:
        """Open a split with all its faults told."""
        try:
            shards = find_shards(self.root, name)
            if shards is not None:
                return self._open_shards(name, shards)
            if is_remote(self.root):
                return open_split(self.root, name)  # which says what is missing there
            folder = ImageFolder(
                self.root, name, self.classes, on_error=lambda fault: self.error("layout", str(fault))
            )
        except DataError as error:
            self.error("layout", str(error))
            return None
        for kind, count in sorted(folder.ignored.items()):
            self.warn("ignored", f"{folder.folder}: {count:,} {kind} file(s) are no images and not used")
        if folder.loose:
            self.warn("ignored", f"{folder.folder}: {folder.loose:,} file(s) lie in no class folder")
        return folder

    def _open_shards(self, name: str, shards: Shards) -> Split:
        for fault in damaged_shards(shards):
            self.error("damaged", fault)
        try:
            return open_split(self.root, name, self.classes)
        except DataError as error:
            if self.classes is None:
                raise
            source = open_split(self.root, name)  # classes differ: the images are looked at all the same
            self.error("layout", str(error))
            return source

    def _images(self, source: Split, seen: Sequence[ImageInfo]) -> None:
        for one in seen:
            if one.error:
                self.error("unreadable", f"{source.path(one.index)}: {one.error}")
            elif one.animated:
                self.warn("animated", f"{source.path(one.index)}: animated, only its first frame is used")

    def _copies(self, source: Split, seen: Sequence[ImageInfo], training: bool) -> None:
        """Tell of the same pixels under two classes, and in training and validation."""
        here: dict[bytes, tuple[str, str]] = {}
        for one in seen:
            if one.error:
                continue
            name, label = str(source.path(one.index)), source.classes[source.labels[one.index]]
            other, other_label = here.setdefault(one.digest, (name, label))
            if other_label != label:
                same = f"{name}: the same image as {other}"
                self.warn("contradiction", f"{same}, which is of class {other_label!r}, not {label!r}")
            if not training and one.digest in self.known:
                other, _ = self.known[one.digest]
                self.warn("leak", f"{name}: the same image as {other} of the training split")
        if training:
            self.known = here

    def _summary(self, name: str, source: Split, seen: Sequence[ImageInfo]) -> SplitSummary:
        counts = Counter(source.classes[label] for label in source.labels)
        per_class = {label: counts[label] for label in source.classes}
        order = sorted((label for label in per_class if per_class[label]), key=per_class.__getitem__)
        if order and per_class[order[-1]] >= UNEVEN * per_class[order[0]]:
            least, most = (f"{label!r} has {per_class[label]:,}" for label in (order[0], order[-1]))
            self.warn("uneven", f"{source.folder}: classes are uneven: {least} image(s), {most}")
        sizes = sorted(((s.width, s.height) for s in seen if not s.error), key=lambda size: size[0] * size[1])
        sizes = sizes or [(0, 0)]
        unreadable = sum(bool(one.error) for one in seen)
        middle = sizes[len(sizes) // 2]
        return SplitSummary(name, len(seen), unreadable, per_class, sizes[0], middle, sizes[-1])
