"""Names and colors of the classes of published data sets, and colors for any others."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from metaformer.errors import ConfigError, DataError, UnknownName

Color = tuple[int, int, int]
Palette = tuple[Color, ...]


MAX_CLASSES: Final = 65535
"""Classes of a 16-bit label map, whose last value stands for pixels that do not count."""
BACKGROUND: Final = "background"
"""What class 0 is called where a list names the others only."""


_COCO_MISSING: Final = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
"""Numbers up to 90 that COCO has no category of things for."""


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set, in order."""

    names: tuple[str, ...]
    palette: tuple[Color, ...]
    """Red, green and blue of each."""


def class_list(name: str) -> ClassList:
    """Give a published list: `ade20k`, `voc`, `cityscapes`, `coco_stuff` or `coco`.

    Raises:
        UnknownName: there is no such list.
    """
    known = _lists()
    if name not in known:
        raise UnknownName("class list", name, known)
    return known[name]


def category_ids(names: Sequence[str]) -> tuple[int, ...]:
    """The numbers that these classes have in COCO's files: its own for its 80, else counted from 1."""
    if tuple(names) == class_list("coco").names:
        return tuple(number for number in range(1, 91) if number not in _COCO_MISSING)
    return tuple(range(1, len(names) + 1))


@cache
def _lists() -> dict[str, ClassList]:
    read = json.loads((files("metaformer.data") / "class_lists.json").read_text(encoding="utf-8"))
    return {
        name: ClassList(tuple(rows), tuple((red, green, blue) for red, green, blue in rows.values()))
        for name, rows in read.items()
    }


def read_palette(values: Any, count: int) -> Palette:
    """A palette from a file's plain values.

    Raises:
        ConfigError: anything but `count` triples of 0 … 255.
    """
    try:
        colors = tuple((int(red), int(green), int(blue)) for red, green, blue in values)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"palette: {values!s:.60} must be triples of red, green and blue") from error
    if len(colors) != count or not all(0 <= value <= 255 for color in colors for value in color):
        raise ConfigError(f"palette: must be {count} colors of 0 … 255, one for each class")
    return colors


def palette(count: int) -> tuple[Color, ...]:
    """Colors for any number of classes, the first of them black: those that Pascal VOC counts up."""
    return tuple(_color(index) for index in range(count))


def palette_for(names: tuple[str, ...]) -> tuple[Color, ...]:
    """Colors of these classes: the published ones of a published list, else those of `palette`.

    Black, which overlays leave out, goes to a first class `background` only.
    """
    published = next((known for known in _lists().values() if known.names == names), None)
    if published is not None:
        return published.palette
    if names[:1] == (BACKGROUND,):
        return palette(len(names))
    return palette(len(names) + 1)[1:]


def _color(index: int) -> Color:
    """Deal the bits of a number out to red, green and blue, the lowest to the highest of each."""
    channels = [0, 0, 0]
    for place, bit in enumerate(_bits(index)):
        channels[place % 3] |= bit << (7 - place // 3)
    return channels[0], channels[1], channels[2]


def _bits(number: int) -> Iterator[int]:
    while number:
        yield number & 1
        number >>= 1


Names = Sequence[str] | str | Path | None
"""Names of classes, or a text file of them, one a line; None where none are given."""


def given_names(given: Names) -> tuple[tuple[str, ...] | None, str]:
    """Take names of classes, or read them from a text file; gives them and what errors call their list.

    Raises:
        DataError: the file cannot be read, or a name is empty or there twice.
    """
    if given is None:
        return None, ""
    if isinstance(given, str | Path):
        return read_class_list(given), str(given)
    return check_class_names(given, "the class list"), "the class list"


def read_class_list(path: str | Path) -> tuple[str, ...]:
    """Read names of classes, one a line; the number of each is its place.

    Raises:
        DataError: the file cannot be read, is empty, has an empty line before the end, or a name twice.
    """
    return check_class_names([line.strip() for line in read_lines(path)], path)


def check_class_names(names: Sequence[str], source: str | Path) -> tuple[str, ...]:
    """Check names for gaps, duplicates and their number; `source` is their list in errors.

    Raises:
        DataError: no name, too many, an empty one, or one twice.
    """
    if not names:
        raise DataError(f"{source}: names no class; write one name a line")
    if len(names) >= MAX_CLASSES:
        raise DataError(f"{source}: names {len(names):,} classes; label maps hold fewer than {MAX_CLASSES:,}")
    lines: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise DataError(
                f"{source}: line {number} is empty; the classes behind it would have other numbers"
            )
        if name in lines:
            raise DataError(f"{source}: {name!r} stands in line {lines[name]} and in line {number}")
        lines[name] = number
    return tuple(names)


def read_lines(path: str | Path) -> list[str]:
    """Lines of a UTF-8 text file, without empty ones at the end.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
