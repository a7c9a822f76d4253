"""What the classes of a segmentation data set are called, and which numbers they have in its files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metaformer.data.class_lists import (
    BACKGROUND,
    Names,
    _checked,
    _lines,
    class_list,
    given_names,
    read_class_list,
)
from metaformer.errors import ConfigError, DataError
from metaformer.tasks.segmentation.label_map import WIDE_IGNORE, LabelTable, ignore_index
from metaformer.tasks.segmentation.layouts import Layout, Numbers


@dataclass(frozen=True)
class Naming:
    """The classes of a data set."""

    names: tuple[str, ...]
    zero: bool
    """Whether 0 in the files is no class, and 1 the first."""

    def table(self, numbers: Numbers, ignored: int | None) -> LabelTable:
        """Make the table from numbers in files to classes.

        Args:
            numbers: what the layout has in its files.
            ignored: the number of pixels that do not count; None for the usual one.

        Raises:
            ConfigError: a number that no label map can hold.
        """
        if ignored is None:
            ignored = ignore_index(len(self.names))
        if not 0 <= ignored <= WIDE_IGNORE:
            raise ConfigError(f"ignore_index is {ignored}: it must lie between 0 and {WIDE_IGNORE}")
        if numbers.classes is not None:
            return LabelTable(numbers.classes, (*numbers.ignored, ignored))
        first = int(self.zero)
        return LabelTable(range(first, first + len(self.names)), (*range(first), *numbers.ignored, ignored))


@dataclass(frozen=True)
class _Own:
    """The names that a data set brings."""

    names: tuple[str, ...]
    place: str
    """Where they are from, for errors."""
    binding: bool
    """Whether others are wrong; a published list may be renamed."""


def name_classes(layout: Layout, home: Path, given: Names, zero: bool | None) -> Naming:
    """Find out the classes of a data set.

    Args:
        layout: how it lies.
        home: where it lies.
        given: names, or a text file of names, to go by.
        zero: whether 0 in the files is no class; None for the layout's own habit.

    Raises:
        DataError: there are no names, or two lists of them that differ.
        ConfigError: `zero` for a layout that does not know that question.
    """
    if zero and layout.zero is None:
        raise ConfigError(f"reduce_zero_label is true: in the layout {layout.name} label 0 is a class")
    own, (names, place) = _own(layout, home), given_names(given)
    if own is None:
        if names is None:
            text = home / (layout.names or "classes.txt")
            raise DataError(f"{text}: no such file: name the classes in it, one a line, or give a class list")
        return Naming(names, bool(zero))
    if zero is None:
        zero = bool(layout.zero) and not _begins_with_background(names, own)
    if layout.zero and not zero:
        own = _Own((BACKGROUND, *own.names), f"{BACKGROUND!r} and {own.place}", own.binding)
    if names is not None:
        _compare(names, place, own)
    return Naming(own.names if names is None else names, zero)


def _begins_with_background(names: Sequence[str] | None, own: _Own) -> bool:
    return names is not None and len(names) == len(own.names) + 1 and names[0] == BACKGROUND


def _compare(names: Sequence[str], place: str, own: _Own) -> None:
    if len(names) != len(own.names):
        raise DataError(f"{place}: names {len(names)} classes, {own.place} {len(own.names)}: they must agree")
    if own.binding and names != own.names:
        first = next(i for i, pair in enumerate(zip(names, own.names, strict=True)) if pair[0] != pair[1])
        differ = f"class {first} is {names[first]!r}, in {own.place} {own.names[first]!r}"
        raise DataError(f"{place}: {differ}: they must agree")


def _own(layout: Layout, home: Path) -> _Own | None:
    path = home / layout.names if layout.names else None
    if path is not None and path.is_file():
        names = _object_info(path, layout) if layout.published else read_class_list(path)
        return _Own(names, str(path), True)
    if layout.published:
        return _Own(class_list(layout.published).names, f"{home}, of layout {layout.name},", False)
    return None


def _object_info(path: Path, layout: Layout) -> tuple[str, ...]:
    """Read ADE20K's table: number first, name last; the published list's short names where it is that."""
    names = []
    for number, line in enumerate(_lines(path)[1:], start=1):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) < 2 or cells[0] != str(number):
            raise DataError(f"{path}: line {number + 1} is not class {number}: number, ..., name, with tabs")
        names.append(cells[-1])
    assert layout.published is not None
    short = class_list(layout.published).names
    synonyms = [[one.strip() for one in name.split(",")] for name in names]
    if len(short) == len(names) and all(one in of for one, of in zip(short, synonyms, strict=True)):
        return short
    return _checked(names, path)
