"""Label files of multi-label data sets: CSV with a column of labels or one-hot columns, and JSON lines."""

import csv
import io
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from metaformer.data.class_lists import check_class_names
from metaformer.errors import ConfigError, DataError, UnknownName
from metaformer.serialize import LINE, is_text, parse_json, shown
from metaformer.storage import as_path, read_text

IMAGE_COLUMNS: Final = ("image", "file", "filename", "file_name", "path", "image_path")
LABEL_COLUMNS: Final = ("labels", "label", "tags", "classes")
SEPARATORS: Final = (",", ";", "|")
"""What may stand between labels instead of a space."""
_DELIMITERS: Final = (",", ";", "\t")
_LARGEST: Final = 1 << 30
"""Bytes of a label file."""
_ONE_HOT: Final = {"0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True}
OnError = Callable[[DataError], None]


def raise_error(error: DataError) -> None:
    """Stop at the first error."""
    raise error


@dataclass(frozen=True)
class LabelFile:
    """What a label file says."""

    images: tuple[str, ...]
    """Image files, as written."""
    labels: tuple[frozenset[str], ...]
    """Class names of each image."""
    classes: tuple[str, ...] | None
    """All classes in order, where the file has a column for each; else None."""


def read_labels(file: Path, separator: str = " ", on_error: OnError = raise_error) -> LabelFile:
    """Read a label file by its ending, .csv or .jsonl.

    Args:
        file: CSV whose first column names images, and then either one column of labels or a 0/1 column for
            each class; or JSON lines `{"image": "a.jpg", "labels": ["cat", "dog"]}`.
        separator: what stands between the labels of one column.
        on_error: is given every error; rows with errors are left out if it returns.

    Raises:
        DataError: the file cannot be read, or `on_error` raises it; the message names file and line.
        ConfigError: an empty separator.
    """
    if not separator:
        raise ConfigError("separator is empty: write what stands between labels")
    text = read_text(file, largest=_LARGEST)
    rows = _Rows(file, on_error)
    if file.suffix.lower() == ".jsonl":
        _read_json_lines(text, rows)
    else:
        _read_csv(text, separator, rows)
        if rows.classes is None:
            _check_separator(rows, separator)
    return LabelFile(tuple(rows.images), tuple(rows.labels), rows.classes)


class _Rows:
    """Rows that are added one by one; an image may stand in one row only."""

    def __init__(self, file: Path, on_error: OnError) -> None:
        self.file, self.on_error = file, on_error
        self.images: list[str] = []
        self.labels: list[frozenset[str]] = []
        self.classes: tuple[str, ...] | None = None
        self.lines: dict[str, int] = {}
        """The line of each image."""

    def fail(self, line: int, text: str) -> None:
        self.on_error(DataError(f"{self.file}: line {line}: {text}"))

    def add(self, line: int, image: str, labels: Sequence[str]) -> None:
        if not image:
            return self.fail(line, "no image is named")
        place = posixpath.normpath(image.replace("\\", "/"))
        if place in self.lines:
            return self.fail(
                line,
                f"{shown(image, quote=False)} stands in line {self.lines[place]} too: write one row an image",
            )
        if wrong := next((label for label in labels if label not in LINE), None):
            return self.fail(line, f"the label {shown(wrong)} must be {LINE}")
        doubled = _doubled(labels)
        if doubled is not None:
            return self.fail(line, f"{image} has the label {doubled!r} twice")
        self.lines[place] = line
        self.images.append(image)
        self.labels.append(frozenset(labels))
        return None


def _doubled(names: Sequence[str]) -> str | None:
    """The first name that is there twice."""
    seen: set[str] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _read_csv(text: str, separator: str, rows: _Rows) -> None:
    head = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        columns = [column.strip() for column in next(reader, [])]
        if not columns or columns[0].lower() not in IMAGE_COLUMNS:
            first = columns[0] if columns else ""
            raise DataError(
                f"{rows.file}: line 1: the first column is {shown(first)}, not one of "
                f"{', '.join(IMAGE_COLUMNS)}: write a header such as image,labels"
            )
        listed = len(columns) == 2 and columns[1].lower() in LABEL_COLUMNS
        if not listed:
            _check_classes(rows, columns[1:])
        for cells in reader:
            line = reader.line_num
            if not any(cells):
                continue
            if len(cells) != len(columns):
                rows.fail(line, f"{len(cells)} cells under {len(columns)} columns")
            elif listed:
                parts = cells[1].split() if separator == " " else cells[1].split(separator)
                rows.add(line, cells[0].strip(), [part.strip() for part in parts if part.strip()])
            elif (labels := _one_hot(rows, line, columns, cells)) is not None:
                rows.add(line, cells[0].strip(), labels)
    except csv.Error as error:
        raise DataError(f"{rows.file}: line {reader.line_num}: not CSV ({error})") from error


def _check_separator(rows: _Rows, separator: str) -> None:
    """Refuse labels that another separator divides into fewer ones, or into no more and in their middle."""
    whole = {label for labels in rows.labels for label in labels}
    for other in SEPARATORS:
        parts = {part.strip() for label in whole for part in label.split(other)} - {""}
        middle = any(other in label.strip(other) for label in whole)
        if other != separator and 1 < len(parts) < len(whole) + middle:
            label = next(label for label in sorted(whole) if other in label)
            options = "--separator, in training --multilabel.separator"
            rows.fail(
                1, f"labels such as {shown(label)} hold {shown(other)}: say what divides them ({options})"
            )


def _check_classes(rows: _Rows, classes: Sequence[str]) -> None:
    if not classes:
        names = ", ".join(LABEL_COLUMNS)
        raise DataError(f"{rows.file}: line 1: a second column is missing: {names}, or one for each class")
    doubled = "" if "" in classes else _doubled(classes)
    if doubled is not None:
        raise DataError(f"{rows.file}: line 1: the class {doubled!r} stands there twice or is empty")
    rows.classes = check_class_names(classes, f"{rows.file}: line 1")


def _one_hot(rows: _Rows, line: int, columns: Sequence[str], cells: Sequence[str]) -> list[str] | None:
    labels = []
    for column, cell in zip(columns[1:], cells[1:], strict=True):
        value = _ONE_HOT.get(cell.strip().lower())
        if value is None:
            rows.fail(line, f"{column} is {shown(cell)}: write 0 or 1")
            return None
        if value:
            labels.append(column)
    return labels


def _read_json_lines(text: str, rows: _Rows) -> None:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            values = parse_json(line, f"{rows.file}: line {number}")
        except DataError as error:
            rows.on_error(error)
            continue
        image, labels = (values.get("image"), values.get("labels")) if isinstance(values, dict) else (0, 0)
        names = labels if isinstance(labels, list) else [None]
        if isinstance(image, str) and is_text(image) and all(isinstance(n, str) and n.strip() for n in names):
            rows.add(number, image.strip(), [str(name).strip() for name in names])
        else:
            rows.fail(number, 'write an object such as {"image": "a.jpg", "labels": ["cat", "dog"]}')


Layout = Literal["auto", "csv", "jsonl", "coco"]
EXTENSIONS: Final[dict[str, str]] = {"csv": ".csv", "jsonl": ".jsonl"}
_PLACES: Final = ("{split}{ending}", "labels/{split}{ending}", "{split}/labels{ending}")
IMAGE_FOLDERS: Final = ("", "{split}", "images/{split}", "images")
"""Folders that the names in a label file may be relative to, then the file's own; the first that holds one of
the first ten images is taken."""


def find_label_file(root: str | Path, split: str, layout: Layout = "auto") -> Path | None:
    """The label file of a split: SPLIT.csv, labels/SPLIT.csv or SPLIT/labels.csv, or the same as .jsonl.

    Raises:
        UnknownName: a layout that there is not.
        DataError: there are several.
    """
    if layout not in get_args(Layout):
        raise UnknownName("layout", layout, get_args(Layout))
    root = as_path(root, "root", DataError, expand=True)
    endings = EXTENSIONS.values() if layout == "auto" else [EXTENSIONS[layout]]
    files = [root / place.format(split=split, ending=ending) for ending in endings for place in _PLACES]
    found = [file for file in files if file.is_file()]
    if len(found) > 1:
        raise DataError(f"{found[0]} and {found[1]}: both hold labels of {split}: keep one of them")
    return found[0] if found else None
