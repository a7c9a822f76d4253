"""Annotations as YOLO reads them: a text file for each image, a line for each object."""

import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from metaformer.data.class_lists import Names, given_names, read_class_list
from metaformer.data.folder import EXTENSIONS, files_below
from metaformer.data.image import image_size
from metaformer.errors import DataError
from metaformer.tasks.detection.formats.annotations import Annotated, AnnotationBuilder
from metaformer.tasks.detection.formats.layouts import SplitPaths
from metaformer.tasks.detection.formats.rules import BOXES_DO, BadAnnotation, Box, check_box, check_polygon
from metaformer.tasks.detection.instances import Row

_LARGEST: Final = 1_000_000
"""Bytes of data.yaml."""
_FORMS: Final = "class, x and y of the middle, width and height; or class and x, y of at least 3 corners"


def read_yolo(place: SplitPaths, classes: Names, masks: bool | None) -> Annotated:
    """Read and check the text files of a split; an image without one shows no object.

    A line is `class x y width height`, of the box's middle, or `class x y x y …`, the corners of an outline;
    all but the class are fractions of the image's width and height. Of images the headers are read.

    Args:
        place: where files and images lie.
        classes: names, or a text file of them, in the order of labels; data.yaml's or classes.txt's else.
        masks: whether every object must be an outline; None keeps those that there are.

    Raises:
        DataError: classes have no names, or two lists of them differ.
    """
    found = AnnotationBuilder(_classes(place, classes))
    faults: list[DataError] = []
    stems: dict[str, str] = {}
    texts = dict.fromkeys(name for name in files_below(place.labels, faults.append) if _is_text(name))
    for name in files_below(place.images, faults.append):
        stem, extension = os.path.splitext(name)
        if extension.lower() not in EXTENSIONS:
            continue
        try:
            size = image_size(place.images / name)
        except DataError as error:
            found.fault("image", str(error))
            continue
        if stem in stems:
            both = f"{place.images / stems[stem]} has the same name, so annotations cannot be told apart"
            found.fault("image", f"{place.images / name}: {both}: rename one")
            continue
        stems[stem] = name
        image = found.add(name, size)
        if f"{stem}.txt" in texts:
            del texts[f"{stem}.txt"]
            _read_one(found, place.labels / f"{stem}.txt", image, masks)
    for fault in faults:
        found.fault("image", str(fault))
    if texts and not found.rows and not found.faults:
        none = f"{place.labels}: none of its {len(texts):,} files has the name of an image"
        found.fault("annotation", none)
    found.unused += [f"{place.labels / name}: annotations without image" for name in texts]
    return found.packed()


def _is_text(name: str) -> bool:
    return name.endswith(".txt") and name != "classes.txt"  # which some programs put there


def _classes(place: SplitPaths, given: Names) -> tuple[str, ...]:
    names, where = given_names(given)
    own, text = place.home / "data.yaml", place.home / "classes.txt"
    if own.is_file():
        listed = _yaml_names(own)
    elif text.is_file():
        own, listed = text, read_class_list(text)
    elif names is None:
        raise DataError(f"{own}: no such file: name the classes in it (names: [cat, dog])")
    else:
        return names
    if names is not None and names != listed:
        raise DataError(
            f"{where}: its {len(names)} classes are not the {len(listed)} of {own} in their order"
        )
    return listed


def _yaml_names(file: Path) -> tuple[str, ...]:
    import yaml

    if file.stat().st_size > _LARGEST:
        raise DataError(f"{file}: is larger than the {_LARGEST:,} bytes allowed")
    try:
        read: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as YAML ({error})") from error
    names = read.get("names") if isinstance(read, dict) else None
    if isinstance(names, dict) and names.keys() == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str | int | float) for name in names):
        raise DataError(f"{file}: names is no list of classes, nor numbers from 0 with their names")
    try:
        listed, _ = given_names([str(name) for name in names])
    except DataError as error:
        raise DataError(f"{file}: names: {error}") from error
    assert listed is not None
    return listed


def _read_one(found: AnnotationBuilder, file: Path, image: int, masks: bool | None) -> None:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        found.fault("annotation", f"{file}: cannot be read ({error})")
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _row(line.split(), found, image, masks)
        except BadAnnotation as bad:
            found.fault(bad.kind, f"{file}: line {number}: {bad.reason}", single=True)
        else:
            found.rows.append(row)


def _row(words: Sequence[str], found: AnnotationBuilder, image: int, masks: bool | None) -> Row:
    size, many = found.sizes[image], len(found.classes)
    try:
        label, *numbers = (float(word) for word in words)
    except ValueError:
        raise BadAnnotation("annotation", f"{' '.join(words)!r:.60} holds no numbers: {_FORMS}") from None
    if label not in range(many):
        raise BadAnnotation("category", f"class {words[0]} is not among the {many}, counted from 0")
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise BadAnnotation("annotation", f"holds {len(words)} numbers: {_FORMS}")
    pixels = array("d", (number * size[place % 2] for place, number in enumerate(numbers)))
    if len(numbers) == 4:
        if masks:
            raise BadAnnotation("segmentation", f"is a box, and masks are made of outlines; {BOXES_DO}")
        x, y, width, height = pixels
        box, area = (x - width / 2, y - height / 2, width, height), width * height
        outline: list[array[float]] = []
    else:
        check_polygon(pixels, size)
        box, area, outline = *_extent(pixels), [pixels]
    try:
        check_box(box, size)
    except BadAnnotation as bad:
        raise BadAnnotation("box", f"the box {bad.reason}, in fractions 0 to 1 of it") from None
    kept = () if masks is False else outline
    return Row(image, len(found.rows) + 1, int(label), box, False, area, kept)


def _extent(numbers: "array[float]") -> tuple[Box, float]:
    """Box and area of a polygon."""
    x, y = numbers[0::2], numbers[1::2]
    box = min(x), min(y), max(x) - min(x), max(y) - min(y)
    turns = sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))
    return box, abs(turns) / 2
