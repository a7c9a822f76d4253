"""A data set as ImageNet lies on disk: root/split/class/images."""

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from PIL import Image

from metaformer.data.image import read_image
from metaformer.errors import DataError

EXTENSIONS: Final = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"})
_UNREADABLE: Final = frozenset(
    {".avif", ".heic", ".heif", ".ico", ".jp2", ".jxl", ".pgm", ".ppm", ".svg", ".tga", ".tif", ".tiff"}
)
_log = logging.getLogger(__name__)
Tell = Callable[[DataError], None]


def _give_up(fault: DataError) -> None:
    raise fault


class ImageFolder:
    """The images of one split with the folder each lies in as its class.

    Classes are the folders' names, sorted; within a class images are sorted by path, and may lie in
    sub-folders. Hidden files are passed over; files whose extension is no image's are counted in
    `ignored` and named in the log.

    Args:
        root: the data set.
        split: its sub-folder, such as `train`.
        classes: the class list of a checkpoint or of the training split; labels are positions in it.
        allow_missing: take a split that has no folder for some of `classes` (ImageNet-A, -R).
        tell: is given each fault of the layout, and what can be read is read all the same: so a check sees
            all of them at once. Without it the first is raised.

    Raises:
        DataError: the layout is another one; the message says what is there instead.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        classes: Sequence[str] | None = None,
        *,
        allow_missing: bool = False,
        tell: Tell = _give_up,
    ) -> None:
        self.folder = _split_folder(Path(root).expanduser(), split)
        found, self.loose = _class_folders(self.folder)
        if classes is not None:
            _compare(self.folder, found, classes, allow_missing, tell)
        self.classes = tuple(dict.fromkeys((*(found if classes is None else classes), *found)))
        self.labels: list[int] = []
        self.ignored: Counter[str] = Counter()
        self._files: list[str] = []  # text takes a third of the memory of Path, in every worker
        label = {name: place for place, name in enumerate(self.classes)}
        for name in found:
            self._read_class(name, label[name], tell)
        if self.ignored:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.ignored.items()))
            _log.warning("%s: ignored files that are no images: %s", self.folder, kinds)

    def __len__(self) -> int:
        return len(self._files)

    def path(self, index: int) -> Path:
        """Tell where an image lies."""
        return self.folder / self._files[index]

    @property
    def paths(self) -> list[Path]:
        """All images, in order."""
        return [self.folder / file for file in self._files]

    def image(self, index: int) -> Image.Image:
        """Read an image as RGB.

        Raises:
            BadImage: it cannot be read.
        """
        return read_image(self.path(index))

    def _read_class(self, name: str, label: int, tell: Tell) -> None:
        top = self.folder / name
        before = len(self._files)
        skipped: Counter[str] = Counter()
        for file in files_below(top, f"{name}/", (), tell):
            kind = os.path.splitext(file)[1].lower()
            if kind in EXTENSIONS:
                self._files.append(file)
                self.labels.append(label)
            elif kind in _UNREADABLE:
                what = f"{kind} images are not read: convert it to PNG or JPEG"
                tell(DataError(f"{self.folder / file}: {what}"))
            else:
                skipped[kind or "without extension"] += 1
        if len(self._files) == before:
            tell(DataError(f"{top}: no images in this class folder{_instead(skipped.total())}"))
        self.ignored += skipped


def _split_folder(root: Path, split: str) -> Path:
    if not os.path.isdir(root):  # Path.is_dir raises where a folder above cannot be entered
        raise DataError(f"{root}: {'is a file, not a folder' if os.path.isfile(root) else 'no such folder'}")
    folder = root / split
    if not os.path.isdir(folder):
        there = ", ".join(_folders(root)[:10]) or "no folders"
        raise DataError(f"{root}: no folder {split!r}; it holds {there}")
    return folder


def _class_folders(folder: Path) -> tuple[list[str], int]:
    """Names of the class folders, and how many files lie beside them."""
    names = _folders(folder)
    loose = sum(1 for entry in _entries(folder) if not entry.is_dir())
    if not names:
        raise DataError(f"{folder}: no class folders; each class needs a folder of images{_instead(loose)}")
    if loose:
        _log.warning("%s: ignored %d file(s) that lie in no class folder", folder, loose)
    return names, loose


def _compare(
    folder: Path, found: Sequence[str], classes: Sequence[str], allow_missing: bool, tell: Tell
) -> None:
    known, there = set(classes), set(found)
    if len(known) != len(classes):
        twice = [name for name, count in Counter(classes).items() if count > 1]
        raise DataError(f"class list names {_some(twice)} more than once")
    if strange := sorted(there - known):
        among = f"{_some(strange)} not among the {len(known)} known classes ({_some(classes)})"
        tell(DataError(f"{folder}: {among}"))
    if not allow_missing and (missing := sorted(known - there)):
        every = "every class of the class list needs one"
        tell(DataError(f"{folder}: no folder for {_some(missing)}; {every}"))


def files_below(folder: Path, prefix: str, above: tuple[tuple[int, int], ...], tell: Tell) -> Iterator[str]:
    """Names of the files in a folder and those below it, sorted, each with `prefix` before it.

    Args:
        folder: where to look.
        prefix: what is put before the names, such as `train/`.
        above: device and number of each folder that holds it, so that links in a circle are told.
        tell: is given each fault.
    """
    try:
        status, entries = folder.stat(), _entries(folder)
    except DataError as fault:
        return tell(fault)
    except OSError as error:
        return tell(DataError(f"{folder}: cannot enter it: {error.strerror}"))
    here = (status.st_dev, status.st_ino)
    if here in above:
        return tell(DataError(f"{folder}: is a link to a folder that holds it"))
    for entry in entries:
        if entry.is_dir():
            yield from files_below(folder / entry.name, f"{prefix}{entry.name}/", (*above, here), tell)
        else:
            yield prefix + entry.name


def _folders(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if entry.is_dir()]


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            found = sorted((e for e in entries if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot list it: {error.strerror}") from error
    for entry in found:
        check_name(entry.path)
    return found


def check_name(path: str | Path) -> None:
    """Refuse what no report, checkpoint or result could name.

    Raises:
        DataError: the name is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        raise DataError(f"{shown}: the name is not UTF-8: rename it") from None


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _instead(count: int) -> str:
    return f" (it holds {count} other file(s))" if count else ""
