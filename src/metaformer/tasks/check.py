"""Report of `metaformer data check`, and what the checks of all tasks share."""

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from metaformer.color import Color
from metaformer.data.class_lists import Names
from metaformer.data.dataset import Source
from metaformer.data.scan import ImageInfo, ReadFn, inspect, scan, scan_part
from metaformer.distributed import World, all_gather_list, raise_on_all_ranks
from metaformer.errors import BadImage, DataError
from metaformer.report.readable import Readable

L = TypeVar("L")
S = TypeVar("S", bound="SplitSummary")
Size = tuple[int, int]
"""Width and height."""


class Certainty(IntEnum):
    """How surely a folder holds the data set of a task."""

    NONE = 0
    POSSIBLE = 1
    BY_FOLDERS = 2
    BY_FILES = 3


@dataclass(frozen=True)
class Finding:
    """One error or warning."""

    grade: Literal["error", "warning"]
    kind: str
    """Errors: `layout`, `damaged`, `one class`, `unreadable`, `label map`, and of objects `image`, `size`,
    `id`, `category`, `box`, `border`, `segmentation`, `annotation`. Warnings: `contradiction` (the same
    image with other labels), `leak` (a validation image that is also a training image), `uneven` (class
    sizes), `absent` (a class without pixels or objects; an error where that is so of all), `unlabeled`,
    `unpaired` (labels without image), `doubled` (objects), `crowds` (mostly), `normalized`, `corners` (boxes
    in other units), `border` (objects that are clipped), `tiny`, `encoding`, `animated`, `ignored`,
    `order` (class folders that are numbers), `alpha` (hidden colors would show)."""
    text: str


@dataclass(frozen=True)
class SplitSummary:
    """Images of a split; tasks add the counts of their labels."""

    name: str
    images: int
    unreadable: int
    """Images that cannot be used, or whose labels cannot."""
    smallest: Size
    """Size of the image with the fewest pixels."""
    median: Size
    largest: Size
    """Size of the image with the most pixels."""

    def text(self) -> str:
        """One line for people."""
        raise NotImplementedError

    def sizes_text(self) -> str:
        """The part of `text` with the sizes."""
        sizes = " to ".join(f"{w}x{h}" for w, h in dict.fromkeys((self.smallest, self.largest)))
        return f"sizes {sizes}, median {self.median[0]}x{self.median[1]}"


@dataclass(frozen=True, repr=False)
class CheckReport(Readable):
    """Findings of a check."""

    root: str
    splits: tuple[SplitSummary, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no error, so that a training would run."""
        return not self.count("error")

    def count(self, grade: str) -> int:
        """Number of findings of a grade."""
        return sum(finding.grade == grade for finding in self.findings)

    def text(self, limit: int = 20) -> str:
        """Lines for people, errors first, at most `limit` findings of a kind."""
        lines = [split.text() for split in self.splits]
        for grade in ("error", "warning"):
            kinds = dict.fromkeys(finding.kind for finding in self.findings if finding.grade == grade)
            for kind in kinds:
                found = [f for f in self.findings if (f.grade, f.kind) == (grade, kind)]
                lines += [f"{grade}: {finding.text}" for finding in found[:limit]]
                if len(found) > limit:
                    lines.append(
                        f"{grade}: … and {len(found) - limit:,} more such ({kind}); --json lists all"
                    )
        lines.append(f"{self.root}: {self.count('error'):,} error(s), {self.count('warning'):,} warning(s)")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON values."""
        return {**asdict(self), "ok": self.ok}


@dataclass
class DatasetCheck(ABC, Generic[S]):
    """Check of a data set, split by split; the first that can be opened is the training's."""

    root: str | Path
    workers: int | None
    """Processes that read; one per core when not given."""
    progress: bool
    """Show a progress bar."""
    layout: str = "auto"
    """How the data set lies on disk."""
    class_names: Names = None
    """Class names in order, or a file of them; those of the training split once it is open."""
    background: Color | None = field(default=None, kw_only=True)
    """Color that transparent pixels are blended on."""
    summaries: list[S] = field(default_factory=list, init=False)
    _findings: list[Finding] = field(default_factory=list, init=False)
    _hidden: list[str] = field(default_factory=list, init=False)
    """Images of the split with transparent pixels."""
    _training: dict[bytes, str] = field(default_factory=dict, init=False)
    """Name of the training image with these pixels."""

    @abstractmethod
    def check_split(self, name: str) -> None:
        """Add the findings and the summary of a split."""

    def run(self, splits: Sequence[str]) -> CheckReport:
        """Check splits; what the readers would log is in the report."""
        with _quiet():
            for split in splits:
                self._hidden = []
                self.check_split(split)
                if self._hidden:
                    count, some = len(self._hidden), ", ".join(self._hidden[:3])
                    self.warn(
                        "alpha",
                        f"{split}: {count:,} image(s) have transparent pixels, whose colors show: {some}; "
                        "data.background blends them on a color",
                    )
        return CheckReport(str(self.root), tuple(self.summaries), tuple(dict.fromkeys(self._findings)))

    def error(self, kind: str, text: str) -> None:
        """Add an error."""
        self._findings.append(Finding("error", kind, text))

    def warn(self, kind: str, text: str) -> None:
        """Add a warning."""
        self._findings.append(Finding("warning", kind, text))

    def scan(self, source: Source, split: str, read: Callable[..., ImageInfo] = inspect) -> list[ImageInfo]:
        """Read the images of a split as a training would, on its background."""
        read = partial(read, background=self.background)
        return scan(source, workers=self.workers, label=split, progress=self.progress, read=read)

    def check_image(self, path: str | Path, image: ImageInfo) -> None:
        """Add what is wrong with an image file."""
        if image.error:
            self.error("unreadable", f"{path}: {image.error}")
            return
        if image.hides_colors:
            self._hidden.append(str(path))
        if image.animated:
            self.warn("animated", f"{path}: animated, only its first frame is used")

    def check_duplicates(
        self, images: Iterable[tuple[str, bytes, L]], difference: Callable[[L, L], str]
    ) -> None:
        """Warn of images with the same pixels and other labels, and of those in training and validation.

        Args:
            images: name, digest and labels of each.
            difference: describes how the labels of the second image differ from the first's.
        """
        seen: dict[bytes, tuple[str, L]] = {}
        for name, digest, labels in images:
            first, first_labels = seen.setdefault(digest, (name, labels))
            if labels != first_labels:
                same = f"{name}: the same image as {first}"
                self.warn("contradiction", f"{same}, {difference(first_labels, labels)}")
            if digest in self._training:
                same = f"{name}: the same image as {self._training[digest]} of the training split"
                self.warn("leak", same)
        if not self.summaries:
            self._training = {digest: name for digest, (name, _) in seen.items()}

    def add(self, findings: Iterable[Finding]) -> None:
        """Add findings."""
        self._findings += findings


def absent_classes(
    source: str | Path, what: str, classes: Sequence[str], training: bool = True
) -> Iterator[Finding]:
    """A warning of classes without pixels, objects or images, if there are any.

    Args:
        source: the folder or file of the split.
        what: what there is none of, such as `pixel`.
        classes: the classes that have none.
        training: whether it is the training split; in another they are only not evaluated.
    """
    if classes:
        names = ", ".join(repr(name) for name in classes[:10])
        more = f" and {len(classes) - 10} more" if len(classes) > 10 else ""
        effect = "never learned" if training else "never evaluated"
        yield Finding("warning", "absent", f"{source}: no {what} of {names}{more}: {effect}")


def warnings_of(findings: Iterable[Finding]) -> list[str]:
    """What a training says of a split that it is given: a line for each kind of warning.

    Raises:
        DataError: the first error among the findings.
    """
    lines: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for finding in findings:
        if finding.grade == "error":
            raise DataError(finding.text)
        lines.setdefault(finding.kind, finding.text)
        counts[finding.kind] += 1
    more = "{} ({:,} more such; metaformer data check lists all)"
    return [more.format(line, counts[kind] - 1) if counts[kind] > 1 else line for kind, line in lines.items()]


def size_range(images: Iterable[ImageInfo]) -> tuple[Size, Size, Size]:
    """Smallest, median and largest size of the readable images."""
    good = [(image.width, image.height) for image in images if not image.error]
    sizes = sorted(good, key=lambda size: size[0] * size[1]) or [(0, 0)]
    return sizes[0], sizes[len(sizes) // 2], sizes[-1]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the warnings of readers."""
    logger = logging.getLogger("metaformer")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def validate(
    folder: Source,
    read: ReadFn,
    label: str,
    path: Callable[[ImageInfo], str | Path],
    *,
    part: tuple[int, int] = (0, 1),
    skip_bad: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> list[ImageInfo]:
    """Check before training that every file of a split can be used.

    Returns what was found out about the images of this part.

    Args:
        folder: the data.
        read: reads what is checked of one image.
        label: name of the progress bar.
        path: the file at fault.
        part: which part to check, and of how many: a process's rank and the number of processes.
        skip_bad: accept a few bad ones, which a training that leaves out bad images will then name.
        workers: processes that read; one per core when not given.
        progress: show a bar on stderr.

    Raises:
        BadImage: the first that cannot be used; the message says how many more there are.
        ConfigError: `part` is out of range.
    """
    infos, bad = scan_part(
        folder, read, label, part=part, skip_bad=skip_bad, workers=workers, progress=progress
    )
    if bad:
        others = f" (and {len(bad) - 1:,} more bad files; metaformer data check lists all)"
        error = bad[0].error or bad[0].label_error
        raise BadImage(path(bad[0]), error + (others if len(bad) > 1 else ""))
    return infos


def validate_splits(
    world: World, check: Callable[..., list[ImageInfo]], *folders: tuple[Any, bool]
) -> list[list[ImageInfo]]:
    """Validate the data of a run before training: each process checks its part, and all fail together.

    Returns what the processes found out about the images of each folder, all parts together.

    Args:
        world: the processes.
        check: called with a folder, `part` (rank and size), `skip_bad` and `progress`.
        folders: data, and whether training leaves out a few bad images of it.

    Raises:
        DataError: what the check found; ranks that found nothing raise RankError.
    """
    failure: DataError | None = None
    infos: list[list[ImageInfo]] = []
    try:
        for folder, skip_bad in folders:
            options: dict[str, Any] = {"part": (world.rank, world.size), "skip_bad": skip_bad}
            infos.append(check(folder, **options, progress=world.main))
    except DataError as error:
        failure = error
    raise_on_all_ranks(failure)
    return [sorted(all_gather_list(part), key=attrgetter("index")) for part in infos]
