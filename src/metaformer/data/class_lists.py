"""Class names and colors of published data sets, class lists in text files, and colors for any classes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from metaformer.color import Color
from metaformer.errors import ConfigError, DataError, UnknownName
from metaformer.serialize import LINE, Text, decode, shown
from metaformer.storage import as_path, read_text

Palette = tuple[Color, ...]
"""Red, green and blue of each class, 0 … 255."""
Names = Sequence[str] | str | Path | None
"""Class names, or a text file of them, one per line; None for the data set's own."""

MAX_CLASSES: Final = 65535
"""Classes of a 16-bit label map, whose last value marks ignored pixels."""
BACKGROUND: Final = "background"
"""Name of class 0 where a list names only the others."""
LABELMAP: Final = "labelmap.txt"
"""CVAT's file of classes and colors."""
_COCO_MISSING: Final = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
"""Category ids up to 90 that COCO does not use."""


@dataclass(frozen=True)
class ClassList:
    """The classes of a data set, in order."""

    names: tuple[str, ...]
    palette: Palette


def class_list(name: str) -> ClassList:
    """Published class list by name: `ade20k`, `voc`, `cityscapes`, `coco_stuff` or `coco`.

    Raises:
        UnknownName: there is no such list.
    """
    known = _lists()
    if name not in known:
        raise UnknownName("class list", name, known)
    return known[name]


def category_ids(names: Sequence[str]) -> tuple[int, ...]:
    """COCO category ids of classes: COCO's own for its 80 classes, else counted from 1."""
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
    colors: Palette = decode(Palette, values, "palette")
    if len(colors) != count:
        raise ConfigError(f"palette: {len(colors):,} colors for {count:,} classes: give one for each")
    return colors


def read_names(values: Any, count: int) -> tuple[str, ...]:
    """Class names from a file's plain values.

    Raises:
        ConfigError: anything but `count` names of one line.
    """
    names: tuple[str, ...] = decode(tuple[Text, ...], values, "classes")
    if len(names) != count:
        raise ConfigError(f"classes: {len(names):,} names, but the network has {count:,} outputs")
    return names


def palette(count: int) -> Palette:
    """Pascal VOC's colors for any number of classes; the first is black."""
    return tuple(_color(index) for index in range(count))


def palette_for(names: tuple[str, ...]) -> Palette:
    """Colors of classes: the published ones of a published list, else those of `palette`.

    Black, which overlays leave out, is only used for a first class `background`.
    """
    published = next((known for known in _lists().values() if known.names == names), None)
    if published is not None:
        return published.palette
    if names[:1] == (BACKGROUND,):
        return palette(len(names))
    return palette(len(names) + 1)[1:]


def _color(index: int) -> Color:
    # Bit i of the index goes to channel i mod 3, the lowest bits to the highest of the channel.
    channels = [0, 0, 0]
    for i in range(index.bit_length()):
        channels[i % 3] |= (index >> i & 1) << (7 - i // 3)
    return channels[0], channels[1], channels[2]


def given_names(given: Names) -> tuple[tuple[str, ...] | None, str]:
    """Class names, read from a text file where that is given, and the name of their list in errors.

    Raises:
        DataError: the file cannot be read, or a name is empty or duplicate.
    """
    if given is None:
        return None, ""
    if isinstance(given, list | tuple):
        return check_class_names(given, "the class list"), "the class list"
    return read_class_list(given), str(given)  # type: ignore[arg-type]  # other sequences are no paths


def read_class_list(path: str | Path) -> tuple[str, ...]:
    """Class names from a text file, one per line in the order of labels.

    Raises:
        DataError: the file cannot be read, is empty, has an empty line before the end, or a name twice.
    """
    return check_class_names([line.strip() for line in read_lines(path)], path)


def read_labelmap(path: Path) -> dict[str, Color | None]:
    """Classes and their colors from CVAT's labelmap.txt, whose lines are `name:red,green,blue:parts:actions`.

    Raises:
        DataError: the file cannot be read, a name is in it twice, or a color is none; a class may lack one.
    """
    classes: dict[str, Color | None] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, color, *_ = (*(part.strip() for part in line.split(":")), "")
        if name in classes:
            raise DataError(f"{path}: line {number}: {name!r} is in an earlier line already")
        try:
            classes[name] = decode(Color, [int(channel) for channel in color.split(",")]) if color else None
        except ValueError as error:
            raise DataError(
                f"{path}: line {number}: color {shown(color)} must be three numbers of 0 … 255"
            ) from error
    check_class_names(list(classes), path)
    return classes


def check_class_names(names: Sequence[str], source: str | Path) -> tuple[str, ...]:
    """Check names for gaps, duplicates and their number; `source` is their list in errors.

    Raises:
        DataError: no name, too many, an empty one, or one twice.
    """
    if not names:
        raise DataError(f"{source}: names no class; write one name per line")
    if len(names) >= MAX_CLASSES:
        raise DataError(f"{source}: names {len(names):,} classes; label maps hold fewer than {MAX_CLASSES:,}")
    lines: dict[str, int] = {}
    for number, name in enumerate(names, start=1):
        if not name:
            raise DataError(f"{source}: line {number} is empty; the classes after it would get other labels")
        if not isinstance(name, str) or name not in LINE:
            raise DataError(f"{source}: line {number}: {shown(name)} must be {LINE}")
        if name in lines:
            raise DataError(f"{source}: {name!r} is in line {lines[name]} and in line {number}")
        lines[name] = number
    return tuple(names)


def read_lines(path: str | Path) -> list[str]:
    """Lines of a text file, without empty ones at the end.

    Raises:
        DataError: it cannot be read.
    """
    return read_text(as_path(path, "class names", DataError, expand=True)).rstrip().splitlines()
