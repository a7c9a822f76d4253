"""`metaformer data check` where pictures have label maps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from metaformer.data.check import CheckReport, Finding, quiet
from metaformer.data.label_check import see_pair
from metaformer.data.label_summary import LabelSummary, summarise
from metaformer.data.layouts import Layout, choose_layout
from metaformer.data.naming import Naming, name_classes
from metaformer.data.pairs import find_pairs
from metaformer.data.segmentation import SegmentationFolder
from metaformer.data.survey import Seen, survey
from metaformer.errors import DataError


def check_label_maps(
    root: str | Path,
    splits: Sequence[str] = ("train", "val"),
    *,
    layout: str = "auto",
    classes: Sequence[str] | str | Path | None = None,
    reduce_zero_label: bool | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> CheckReport:
    """Read all pictures and label maps of a data set and report everything that is wrong with it.

    Args:
        root: the data set.
        splits: their names; the first is the one to train on.
        layout: how it lies; see `open_segmentation`.
        classes: names of the classes, or a text file of them, where the data set brings none.
        reduce_zero_label: whether 0 in the label maps is no class; as the layout has it when not given.
        workers: processes that read; one per core when not given.
        progress: show a bar on stderr.

    Raises:
        ConfigError: a layout that there is not, or a value that it does not have.
    """
    check = _Check(workers, progress)
    with quiet():
        try:
            form, home = choose_layout(root, layout)
            naming = name_classes(form, home, classes, reduce_zero_label)
        except DataError as error:
            check.add("error", "layout", str(error))
            splits = ()
        for split in splits:
            check.split(form, home, naming, split)
    return CheckReport(str(root), tuple(check.summaries), tuple(dict.fromkeys(check.findings)))


class _Check:
    def __init__(self, workers: int | None, progress: bool) -> None:
        self.workers, self.progress = workers, progress
        self.findings: list[Finding] = []
        self.summaries: list[LabelSummary] = []
        self.known: dict[bytes, str] | None = None
        """Name of the training picture with these pixels, once training has been looked at."""

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
        seen = survey(folder, workers=self.workers, label=name, progress=self.progress, look=see_pair)
        for one in seen:
            self._pair(folder, one)
        self._copies(folder, seen)
        summary = summarise(name, folder.classes, seen)
        self.summaries.append(summary)
        if len(self.summaries) == 1:
            self._classes(folder, summary)

    def _pair(self, folder: SegmentationFolder, seen: Seen) -> None:
        picture, label_map = folder.path(seen.index), folder.label_path(seen.index)
        if seen.trouble:
            self.add("error", "unreadable", f"{picture}: {seen.trouble}")
        elif seen.animated:
            self.add("warning", "animated", f"{picture}: animated, only its first frame is used")
        if seen.label_trouble:
            self.add("error", "label map", f"{label_map}: {seen.label_trouble}")
        elif seen.labels is not None and not seen.labels.pixels:
            self.add(
                "warning", "unlabelled", f"{label_map}: every pixel is ignored, nothing is learned from it"
            )

    def _copies(self, folder: SegmentationFolder, seen: Sequence[Seen]) -> None:
        """Tell of the same pixels with two label maps, and in training and validation."""
        here: dict[bytes, str] = {}
        labels: dict[bytes, bytes] = {}
        for one in seen:
            if one.trouble or one.labels is None:
                continue
            name = str(folder.path(one.index))
            other = here.setdefault(one.digest, name)
            if labels.setdefault(one.digest, one.labels.digest) != one.labels.digest:
                same = f"{name}: the same picture as {other}, with another label map"
                self.add("warning", "contradiction", same)
            if self.known is not None and one.digest in self.known:
                same = f"{name}: the same picture as {self.known[one.digest]} of the training split"
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
