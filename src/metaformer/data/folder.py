"""Image folder in ImageNet's layout: root/split/class/images."""

import copy
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, Self

from PIL import Image

from metaformer.color import Color
from metaformer.data.image import read_image
from metaformer.errors import DataError
from metaformer.process import encoding_remedy
from metaformer.serialize import LINE, shown
from metaformer.storage import as_path, read_text

EXTENSIONS: Final = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif"})
_UNREAD: Final = (
    ".arw .avif .cr2 .cr3 .dcm .dds .dng .exr .hdr .heic .heif .ico .j2k .jp2 .jpx .jxl .mpo .nef .npy "
    ".orf .pbm .pcx .pfm .pgm .pnm .ppm .psd .raf .rw2 .svg .tga .tif .tiff .xbm"
)
UNREAD: Final = frozenset(_UNREAD.split())
"""Extensions of images in formats that are not read: an error where images are listed, never left out."""
_log = logging.getLogger(__name__)
OnError = Callable[[DataError], None]


def _raise(error: DataError) -> None:
    raise error


class ImageFolder:
    """One split of an image folder: each class is a folder of images.

    Classes are the folders' names, sorted; within a class images are sorted by path, and may lie in
    sub-folders. Hidden files are skipped; files with another extension are counted in `ignored` and logged.

    Args:
        root: the data set.
        split: its sub-folder, such as `train`.
        classes: the class list of a checkpoint or of the training split; labels are indices into it.
        allow_missing: accept a split without a folder for some of `classes` (ImageNet-A, -R).
        on_error: called with each error of the layout, so that a check collects them all; the first is
            raised when not given.

    Raises:
        DataError: another layout; the message says what is there instead.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        classes: Sequence[str] | None = None,
        *,
        allow_missing: bool = False,
        on_error: OnError = _raise,
    ) -> None:
        self.folder = _split_folder(as_path(root, "root", DataError, expand=True), split)
        found, self.loose = _class_folders(self.folder)
        if classes is not None:
            _compare(self.folder, found, classes, allow_missing, on_error)
        self.classes = tuple(dict.fromkeys((*(found if classes is None else classes), *found)))
        self.labels: list[int] = []
        self.ignored: Counter[str] = Counter()
        self._hidden: Counter[str] = Counter()
        self._files: list[str] = []  # text takes a third of the memory of Path, in every worker
        label = {name: index for index, name in enumerate(self.classes)}
        for name in found:
            self._read_class(name, label[name], on_error)
        if self.ignored:
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self.ignored.items()))
            _log.warning("%s: ignored files that are not images: %s", self.folder, kinds)
        log_hidden(self.folder, self._hidden)

    def __len__(self) -> int:
        return len(self._files)

    def path(self, index: int) -> Path:
        """Path of an image."""
        return self.folder / self._files[index]

    @property
    def paths(self) -> list[Path]:
        """All images, in order."""
        return [self.folder / file for file in self._files]

    def subset(self, wanted: Sequence[bool]) -> Self:
        """The images that are wanted, with all classes."""
        part = copy.copy(self)
        part._files = [file for file, there in zip(self._files, wanted, strict=True) if there]
        part.labels = [label for label, there in zip(self.labels, wanted, strict=True) if there]
        return part

    def image(self, index: int, background: Color | None = None) -> Image.Image:
        """Read an image as RGB.

        Raises:
            BadImage: it cannot be read.
        """
        return read_image(self.path(index), background=background)

    def _read_class(self, name: str, label: int, on_error: OnError) -> None:
        top = self.folder / name
        before = len(self._files)
        skipped: Counter[str] = Counter()
        for file in files_below(top, on_error, f"{name}/", hidden=self._hidden):
            kind = os.path.splitext(file)[1].lower()
            if kind in EXTENSIONS:
                self._files.append(file)
                self.labels.append(label)
            elif kind in UNREAD:
                on_error(unread_image(self.folder / file))
            else:
                skipped[kind or "without extension"] += 1
        if len(self._files) == before:
            on_error(DataError(f"{top}: no images in this class folder{_instead(skipped.total())}"))
        self.ignored += skipped


def unread_image(path: Path) -> DataError:
    """Error of an image in a format that is not read."""
    return DataError(f"{path}: {path.suffix.lower()} images are not read: convert it to PNG or JPEG")


def numeric_order(classes: Sequence[str]) -> str | None:
    """A line where class names are numbers whose order is another than that of their labels; else None.

    Labels follow the names' alphabet, as elsewhere, in which 10 comes before 2.
    """
    if not all(name.isascii() and name.isdigit() for name in classes):
        return None
    natural = sorted(classes, key=int)
    if natural == list(classes):
        return None
    label = next(i for i, name in enumerate(classes) if name != natural[i])
    return (
        f"class folders are numbers in alphabetical order: label {label} is class {classes[label]!r}, not "
        f"{natural[label]!r}; names with leading zeros have one order"
    )


def _split_folder(root: Path, split: str) -> Path:
    if not os.path.isdir(root):  # Path.is_dir raises where a folder above cannot be entered
        raise DataError(f"{root}: {'is a file, not a folder' if os.path.isfile(root) else 'no such folder'}")
    folder = root / split
    if not os.path.isdir(folder):
        present = ", ".join(_folders(root)[:10]) or "no folders"
        raise DataError(f"{root}: no folder {split!r}; it holds {present}")
    return folder


def _class_folders(folder: Path) -> tuple[list[str], int]:
    """Names of the class folders, and the number of files beside them."""
    names = _folders(folder)
    for name in names:
        if name not in LINE:
            raise DataError(f"{folder}: the class folder {shown(name)} must be {LINE}: rename it")
    loose = sum(1 for entry in _entries(folder) if not _is_dir(entry))
    if not names:
        raise DataError(f"{folder}: no class folders; each class needs a folder of images{_instead(loose)}")
    if loose:
        _log.warning("%s: ignored %d file(s) that lie in no class folder", folder, loose)
    return names, loose


def _compare(
    folder: Path, found: Sequence[str], classes: Sequence[str], allow_missing: bool, on_error: OnError
) -> None:
    known, present = set(classes), set(found)
    if len(known) != len(classes):
        twice = [name for name, count in Counter(classes).items() if count > 1]
        raise DataError(f"class list names {_some(twice)} more than once")
    if strange := sorted(present - known):
        among = f"{_some(strange)} not among the {len(known)} known classes ({_some(classes)})"
        on_error(DataError(f"{folder}: {among}"))
    if not allow_missing and (missing := sorted(known - present)):
        every = "every class of the class list needs one"
        on_error(DataError(f"{folder}: no folder for {_some(missing)}; {every}"))


class LinkCircle(DataError):
    """A link to a folder above it."""


def files_below(
    folder: Path,
    on_error: OnError,
    prefix: str = "",
    parents: tuple[tuple[int, int], ...] = (),
    hidden: Counter[str] | None = None,
) -> Iterator[str]:
    """Relative paths of all files below a folder, sorted: in linked folders, too, and in no hidden ones.

    Args:
        folder: the folder.
        on_error: called with each error.
        prefix: put before the paths, such as `train/`.
        parents: device and inode of the folders above, by which links in a circle are found.
        hidden: counts the hidden folders and images that are left out, by name.
    """
    try:
        status, entries = folder.stat(), _entries(folder, hidden)
    except DataError as error:
        return on_error(error)
    except OSError as error:
        return on_error(DataError(f"{folder}: cannot enter it: {error.strerror}"))
    here = (status.st_dev, status.st_ino)
    if here in parents:
        return on_error(LinkCircle(f"{folder}: is a link to a folder that holds it"))
    for entry in entries:
        if _is_dir(entry):
            above = (*parents, here)
            yield from files_below(folder / entry.name, on_error, f"{prefix}{entry.name}/", above, hidden)
        else:
            yield prefix + entry.name


def log_hidden(folder: Path, hidden: Counter[str]) -> None:
    """Say in one line which hidden folders and images are left out, if any."""
    if hidden:
        names = [name if count == 1 else f"{name} ({count} times)" for name, count in sorted(hidden.items())]
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        _log.warning("%s: left out what is hidden: %s", folder, shown)


def _folders(folder: Path) -> list[str]:
    return [entry.name for entry in _entries(folder) if _is_dir(entry)]


def _is_dir(entry: "os.DirEntry[str]") -> bool:
    """Whether an entry is a folder; links in a circle are none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _entries(folder: Path, hidden: Counter[str] | None = None) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot list it: {error.strerror}") from error
    if hidden is not None:
        hidden.update(entry.name for entry in found if _is_hidden_image_data(entry))
    found = [entry for entry in found if not entry.name.startswith(".")]
    for entry in found:
        check_name(entry.path)
    return found


def _is_hidden_image_data(entry: "os.DirEntry[str]") -> bool:
    if not entry.name.startswith("."):
        return False
    return os.path.splitext(entry.name)[1].lower() in EXTENSIONS or entry.is_dir()


def check_name(path: str | Path) -> None:
    """Check that a file name is UTF-8, so that reports and checkpoints can hold it.

    Raises:
        DataError: it is not.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        shown = os.fsencode(path).decode(errors="backslashreplace")
        remedy = encoding_remedy(shown)
        wrong = f"the name cannot be read{remedy}" if remedy else "the name is not UTF-8: rename it"
        raise DataError(f"{shown}: {wrong}") from None


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _instead(count: int) -> str:
    return f" (it holds {count} other file(s))" if count else ""


_FLAGS: Final = ("1", "-1", "0")
"""Last words of a split list's lines that are no part of the name."""


def read_split_list(path: Path, exists: Callable[[str], bool], on_error: OnError = _raise) -> list[str]:
    """Names of a split's images from a text file, one a line.

    A name may have several words: a line is a name if such a file exists. Otherwise its last word is left out
    if it is a flag, 1, -1 or 0, as in Pascal VOC's lists for each class.

    Args:
        path: the list.
        exists: whether there is a file of a name.
        on_error: called for each line that names the image of an earlier line.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        lines = read_text(path).split("\n")
    except DataError as error:
        others = ", ".join(sorted(other.name for other in path.parent.glob("*.txt"))[:10])
        there = f"; {path.parent} holds {others}: name the split so (data.train, --split)" if others else ""
        raise DataError(f"{error}; it must list the split's images{there}") from error
    names: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name = _listed_name(line, exists)
        if name in names:
            on_error(DataError(f"{path}: line {number}: {name!r} is in line {names[name]} already"))
        names.setdefault(name, number)
    return list(names)


def _listed_name(line: str, exists: Callable[[str], bool]) -> str:
    if exists(line):
        return line
    name = line.strip()
    words = name.rsplit(None, 1)
    return words[0] if len(words) == 2 and words[1] in _FLAGS and not exists(name) else name
