"""Class names and label maps: PNGs whose values stand for classes."""

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from metaformer.color import Color
from metaformer.data.class_lists import (
    BACKGROUND,
    LABELMAP,
    Names,
    Palette,
    check_class_names,
    class_list,
    given_names,
    read_class_list,
    read_labelmap,
    read_lines,
)
from metaformer.data.image import MAX_PIXELS, explain, need_file
from metaformer.errors import BadImage, ConfigError, DataError
from metaformer.tasks.segmentation.layouts import LabelEncoding, Layout

LabelMap = NDArray[np.uint8] | NDArray[np.uint16]
"""(H, W); uint16 for more than 255 classes."""
IGNORE: Final = 255
WIDE_IGNORE: Final = 65535
_UNKNOWN: Final = -1
_OBJECT_INFO: Final = "objectInfo150.txt"


def default_ignore_index(classes: int) -> int:
    """Label of ignored pixels: 255, or 65535 for more than 255 classes."""
    return IGNORE if classes <= IGNORE else WIDE_IGNORE


def read_label_map(path: str | Path, colors: Palette = ()) -> LabelMap:
    """Read the values of a label map: gray levels, palette indices, or the places of its colors in `colors`.

    Raises:
        BadImage: the file is missing, empty, damaged, too large, not a PNG, an RGB image without `colors`, or
            has another color.
        DataError: out of memory, or too many open files.
    """
    need_file(path)
    try:
        with warnings.catch_warnings(), Image.open(path, formats=("PNG",)) as image:
            warnings.simplefilter("ignore")
            return _values(image, path, colors)
    except BadImage:
        raise
    except UnidentifiedImageError as error:
        empty = os.path.getsize(path) == 0
        reason = "the file is empty" if empty else "is not a PNG, or has a damaged header; use PNG label maps"
        raise BadImage(path, reason) from error
    except Exception as error:
        raise explain(error, path, MAX_PIXELS) from error


def _values(image: Image.Image, path: str | Path, colors: Palette) -> LabelMap:
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width}x{image.height}"
        raise BadImage(path, f"{size} is more than the {MAX_PIXELS:,} pixels allowed")
    if colors and image.mode in ("RGB", "P"):
        return _places(np.asarray(image.convert("RGB")), path, colors)
    if image.mode in ("RGB", "RGBA", "LA", "PA"):
        remedy = f"save label maps as gray or palette PNGs, or RGB with the colors in {LABELMAP}"
        raise BadImage(path, f"is an {image.mode} image: {remedy}")
    # Pillow stretches gray of 2 and 4 bits to 8, other programs do not
    tiles = getattr(image, "tile", ())
    if tiles and str(tiles[0].args) in ("L;2", "L;4"):
        bits = str(tiles[0].args)[-1]
        raise BadImage(path, f"is gray of {bits} bits, which programs read differently: save 8 bits")
    values = np.asarray(image)
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    return values if values.dtype == np.uint8 else values.astype(np.uint16)


def _places(pixels: NDArray[np.uint8], path: str | Path, colors: Palette) -> LabelMap:
    """Place of each pixel's color among `colors`, from RGB (H, W, 3)."""
    codes = pixels.astype(np.uint32) << np.array([16, 8, 0], dtype=np.uint32)
    codes = codes.sum(axis=2, dtype=np.uint32)
    known = np.array([red << 16 | green << 8 | blue for red, green, blue in colors], dtype=np.uint32)
    order = np.argsort(known)
    places = order[np.searchsorted(known, codes, sorter=order).clip(max=len(known) - 1)]
    if (strange := known[places] != codes).any():
        found, counts = np.unique(codes[strange], return_counts=True)
        names = [f"{code >> 16},{code >> 8 & 255},{code & 255}" for code in found.tolist()]
        shown = _with_pixels(dict(zip(names, counts.tolist(), strict=True)))
        raise BadImage(path, f"color {shown}: none of the {len(colors)} in {LABELMAP}")
    return places.astype(np.uint8 if len(colors) <= IGNORE else np.uint16)


def _with_pixels(counts: Mapping[Any, int]) -> str:
    """The first values or colors with their pixels, and the number of the others."""
    shown = ", ".join(f"{value} ({n:,} pixel{'s' * (n > 1)})" for value, n in islice(counts.items(), 5))
    return shown + (f" and {len(counts) - 5} more" if len(counts) > 5 else "")


def count_values(values: LabelMap) -> dict[int, int]:
    """Pixels of each value in a label map."""
    if values.dtype == np.uint8:  # several times as fast as bincount
        counts = np.array(Image.fromarray(values).histogram())
    else:
        counts = np.bincount(values.ravel())
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}


class LabelTable:
    """Lookup table from the values in label map files to classes.

    Args:
        values: the value of each class.
        ignored: values of ignored pixels; they take precedence over those of classes.
        colors: RGB colors that stand for values 0, 1 and so on.
    """

    def __init__(self, values: Iterable[int], ignored: Iterable[int], colors: Palette = ()) -> None:
        self.colors = colors
        self.values, self.ignored = tuple(values), tuple(dict.fromkeys(ignored))
        self.ignore_index = default_ignore_index(len(self.values))
        self._table = np.full(WIDE_IGNORE + 1, _UNKNOWN, dtype=np.int32)
        self._table[list(self.values)] = np.arange(len(self.values))
        self._table[list(self.ignored)] = self.ignore_index

    def to_classes(self, values: LabelMap, path: str | Path) -> LabelMap:
        """Map the values of a file to classes 0 … K − 1 and `ignore_index`.

        Raises:
            BadImage: an unknown value; `path` names the file.
        """
        labels: NDArray[np.int32] = self._table[values]
        if labels.size and labels.min() < 0:
            raise BadImage(path, self.unknown_values(count_values(values)))
        return labels.astype(np.uint8) if self.ignore_index == IGNORE else labels.astype(np.uint16)

    def class_pixels(self, counts: Mapping[int, int]) -> tuple[list[int], int]:
        """Pixels of each class and ignored pixels, from the pixels of each value."""
        pixels, ignored = [0] * len(self.values), 0
        for value, count in counts.items():
            label = int(self._table[value])
            if label == self.ignore_index:
                ignored += count
            elif label != _UNKNOWN:
                pixels[label] += count
        return pixels, ignored

    def unknown_values(self, counts: Mapping[int, int]) -> str:
        """Error message for values that are neither a class nor ignored; empty if there are none."""
        unknown = [value for value in sorted(counts) if self._table[value] == _UNKNOWN]
        if not unknown:
            return ""
        shown = _with_pixels({value: counts[value] for value in unknown})
        known = f"classes are {_ranges(set(self.values) - set(self.ignored))}"
        return f"label {shown}: {known}, ignored {_ranges(self.ignored)}"


def _ranges(values: Iterable[int]) -> str:
    """Format numbers as ranges: `0 to 10, 12`."""
    runs: list[tuple[int, int]] = []
    for value in sorted(values):
        if runs and runs[-1][1] == value - 1:
            runs[-1] = (runs[-1][0], value)
        else:
            runs.append((value, value))
    return ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in runs) or "none"


@dataclass(frozen=True)
class ClassNames:
    """Class names of a data set."""

    names: tuple[str, ...]
    reduce_zero_label: bool
    """Value 0 in label maps is ignored, and 1 is the first class."""
    colors: Palette = ()
    """Colors that stand for the classes in RGB and palette label maps."""

    def table(self, encoding: LabelEncoding, ignore_index: int | None) -> LabelTable:
        """Build the lookup table from values to classes.

        Args:
            encoding: the layout's values.
            ignore_index: value of ignored pixels; None for the default.

        Raises:
            ConfigError: `ignore_index` does not fit into 16 bits.
            DataError: the layout's values are those of another number of classes.
        """
        if ignore_index is None:
            ignore_index = default_ignore_index(len(self.names))
        if not 0 <= ignore_index <= WIDE_IGNORE:
            raise ConfigError(f"ignore_index is {ignore_index}: it must lie between 0 and {WIDE_IGNORE}")
        first = int(self.reduce_zero_label)
        if encoding.values is not None:
            if len(encoding.values) != len(self.names):
                published = f"label maps *{encoding.suffix}.png hold {len(encoding.values)} published classes"
                raise DataError(f"{len(self.names)} class names, but {published}: they must agree")
            return LabelTable(encoding.values, (*encoding.ignored, ignore_index))
        values = range(first, first + len(self.names))
        return LabelTable(values, (*range(first), *encoding.ignored, ignore_index), self.colors)


@dataclass(frozen=True)
class _DatasetNames:
    """Class names that come with a data set or its layout."""

    names: tuple[str, ...]
    source: str
    """The file or layout, for errors."""
    fixed: bool
    """Other names are an error; published lists are only taken where there are none."""
    colors: Palette = ()


def resolve_class_names(
    layout: Layout, root: Path, names: Names, reduce_zero_label: bool | None
) -> ClassNames:
    """Determine the class names of a data set.

    Args:
        layout: layout of the data set.
        root: its folder.
        names: expected class names, or a text file of them.
        reduce_zero_label: whether value 0 is ignored; None for the layout's default.

    Raises:
        DataError: no class names, or two lists that differ.
        ConfigError: `reduce_zero_label` where value 0 is a class.
    """
    own, (wanted, source) = _dataset_names(layout, root), given_names(names)
    colors = () if own is None else own.colors
    if reduce_zero_label and (layout.reduce_zero_label is None or colors):
        where = root / LABELMAP if colors else f"the layout {layout.name}"
        raise ConfigError(f"reduce_zero_label is true: in {where} label 0 is a class")
    if own is None:
        if wanted is None:
            file = root / (layout.names_file or "classes.txt")
            raise DataError(f"{file}: no such file: write the class names into it, one per line")
        return ClassNames(wanted, bool(reduce_zero_label))
    if reduce_zero_label is None:
        has_background = BACKGROUND in (own.names[0], (wanted or own.names)[0])
        reduce_zero_label = bool(layout.reduce_zero_label) and not has_background
    if layout.reduce_zero_label and not reduce_zero_label and own.names[0] != BACKGROUND:
        own = _DatasetNames((BACKGROUND, *own.names), f"{BACKGROUND!r} and {own.source}", own.fixed)
    if wanted is not None and own.fixed:
        _compare(wanted, source, own)
    return ClassNames(own.names if wanted is None else wanted, reduce_zero_label, colors)


def _compare(names: Sequence[str], source: str, own: _DatasetNames) -> None:
    if len(names) != len(own.names):
        raise DataError(f"{source}: {len(names)} classes, {own.source} {len(own.names)}: they must agree")
    if names != own.names:
        first = next(i for i, pair in enumerate(zip(names, own.names, strict=True)) if pair[0] != pair[1])
        differ = f"class {first} is {names[first]!r}, in {own.source} {own.names[first]!r}"
        raise DataError(f"{source}: {differ}: they must agree")


def _dataset_names(layout: Layout, root: Path) -> _DatasetNames | None:
    table, own, labelmap = (root / name for name in (_OBJECT_INFO, "classes.txt", LABELMAP))
    if layout.class_list and layout.names_file == _OBJECT_INFO and table.is_file():
        return _DatasetNames(_object_info(table, layout.class_list), str(table), True)
    if layout.labelmap and labelmap.is_file():
        listed = _labelmap(labelmap)
        if own.is_file():
            _compare(read_class_list(own), str(own), listed)
        return listed
    if own.is_file():
        return _DatasetNames(read_class_list(own), str(own), True)
    if layout.class_list:
        source = f"{root}, of layout {layout.name},"
        return _DatasetNames(class_list(layout.class_list).names, source, False)
    return None


def _labelmap(path: Path) -> _DatasetNames:
    classes = read_labelmap(path)
    colors = tuple(color for color in classes.values() if color is not None)
    first: dict[Color | None, str] = {}
    for name, color in classes.items():
        other = first.setdefault(color, name)
        if colors and (color is None or other != name):
            what = "no color" if color is None else f"the color of {other!r}"
            raise DataError(f"{path}: {name!r} has {what}: each class needs its own")
    return _DatasetNames(tuple(classes), str(path), True, colors)


def _object_info(path: Path, published: str) -> tuple[str, ...]:
    """Class names of ADE20K's objectInfo150.txt: tab-separated number, …, comma-separated synonyms.

    Where the synonyms of all classes contain the published list's short names, those are returned.
    """
    names = []
    for number, line in enumerate(read_lines(path)[1:], start=1):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) < 2 or cells[0] != str(number):
            raise DataError(f"{path}: line {number + 1} is not class {number}: number, …, name, with tabs")
        names.append(cells[-1])
    short = class_list(published).names
    synonyms = [[name.strip() for name in cell.split(",")] for cell in names]
    if len(short) == len(names) and all(name in of for name, of in zip(short, synonyms, strict=True)):
        return short
    return check_class_names(names, path)
