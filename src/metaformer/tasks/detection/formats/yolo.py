"""YOLO annotations: a text file for each image, a line for each object."""

import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from metaformer.data.class_lists import Names, given_names, read_class_list
from metaformer.data.folder import EXTENSIONS, files_below
from metaformer.data.image import image_size
from metaformer.errors import DataError
from metaformer.tasks.detection.formats.annotations import (
    BOXES_DO,
    AnnotationBuilder,
    Annotations,
    BadAnnotation,
    Box,
    check_box,
    check_polygon,
)
from metaformer.tasks.detection.formats.layouts import SplitPaths
from metaformer.tasks.detection.instances import Row

_MAX_BYTES: Final = 1_000_000
"""Size of data.yaml."""
_LINE: Final = "class, x and y of the center, width and height; or class and x, y of 3 or more points"


def read_yolo(paths: SplitPaths, classes: Names, masks: bool | None) -> Annotations:
    """Read and validate the text files of a split; an image without a file has no objects.

    A line is `class x y width height`, with the center of the box, or `class x y x y …`, a polygon; all but
    the class are fractions of the image's width and height. Of images the headers are read.

    Args:
        paths: the folders of the files and of the images.
        classes: class names, or a text file of them, in the order of labels; by default those of data.yaml or
            classes.txt.
        masks: whether every object must be a polygon; None keeps those that there are.

    Raises:
        DataError: classes have no names, or two lists of them differ.
    """
    builder = AnnotationBuilder(_classes(paths, classes))
    errors: list[DataError] = []
    stems: dict[str, str] = {}
    labels = dict.fromkeys(name for name in files_below(paths.labels, errors.append) if _is_label(name))
    found = list(files_below(paths.images, errors.append))
    chosen = set(paths.select([name for name in found if os.path.splitext(name)[1].lower() in EXTENSIONS]))
    for name in found:
        if name not in chosen:
            labels.pop(f"{os.path.splitext(name)[0]}.txt", None)
            continue
        stem = os.path.splitext(name)[0]
        try:
            size = image_size(paths.images / name)
        except DataError as error:
            builder.add_fault("image", str(error))
            continue
        if stem in stems:
            both = f"{paths.images / stems[stem]} has the same name, and so the same annotations"
            builder.add_fault("image", f"{paths.images / name}: {both}: rename one")
            continue
        stems[stem] = name
        image = builder.add_image(name, size)
        if f"{stem}.txt" in labels:
            del labels[f"{stem}.txt"]
            _read_image(builder, paths.labels / f"{stem}.txt", image, masks)
    for unreadable in errors:
        builder.add_fault("image", str(unreadable))
    if labels and not builder.rows and not builder.faults:
        none = f"{paths.labels}: none of its {len(labels):,} files has the name of an image"
        builder.add_fault("annotation", none)
    builder.unused += [f"{paths.labels / name}: annotations without image" for name in labels]
    return builder.build()


def _is_label(name: str) -> bool:
    return name.endswith(".txt") and name != "classes.txt"  # which some programs put there


def _classes(paths: SplitPaths, given: Names) -> tuple[str, ...]:
    names, where = given_names(given)
    file, text = (
        next((paths.root / name for name in names if (paths.root / name).is_file()), paths.root / names[0])
        for names in (("data.yaml", "dataset.yaml"), ("classes.txt", "obj.names"))
    )
    if file.is_file():
        own = _yaml_names(file)
    elif text.is_file():
        file, own = text, read_class_list(text)
    elif names is None:
        raise DataError(f"{file}: no such file: name the classes in it (names: [cat, dog])")
    else:
        return names
    if names is not None and names != own:
        raise DataError(f"{where}: its {len(names)} classes are not the {len(own)} of {file} in their order")
    return own


def _yaml_names(file: Path) -> tuple[str, ...]:
    import yaml

    if file.stat().st_size > _MAX_BYTES:
        raise DataError(f"{file}: is larger than the {_MAX_BYTES:,} bytes allowed")
    try:
        content: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{file}: cannot be read as YAML ({error})") from error
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict) and names.keys() == set(range(len(names))):
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str | int | float) for name in names):
        raise DataError(f"{file}: names is no list of classes, nor numbers from 0 with their names")
    try:
        valid, _ = given_names([str(name) for name in names])
    except DataError as error:
        raise DataError(f"{file}: names: {error}") from error
    assert valid is not None
    return valid


def _read_image(builder: AnnotationBuilder, file: Path, image: int, masks: bool | None) -> None:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        builder.add_fault("annotation", f"{file}: cannot be read ({error})")
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _row(line.split(), builder, image, masks)
        except BadAnnotation as bad:
            builder.add_fault(bad.kind, f"{file}: line {number}: {bad.reason}", one_object=True)
        else:
            builder.rows.append(row)


def _row(values: Sequence[str], builder: AnnotationBuilder, image: int, masks: bool | None) -> Row:
    size, classes = builder.sizes[image], len(builder.classes)
    try:
        label, *numbers = map(float, values)
    except ValueError:
        raise BadAnnotation("annotation", f"{' '.join(values)!r:.60} holds no numbers: {_LINE}") from None
    if label not in range(classes):
        raise BadAnnotation("category", f"class {values[0]} is not among the {classes}, counted from 0")
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise BadAnnotation("annotation", f"holds {len(values)} numbers: {_LINE}")
    pixels = array("d", (number * size[index % 2] for index, number in enumerate(numbers)))
    polygons: list[array[float]] = []
    if len(numbers) == 4:
        if masks:
            raise BadAnnotation("segmentation", f"is a box, no polygon to make a mask of; {BOXES_DO}")
        x, y, width, height = pixels
        box, area = (x - width / 2, y - height / 2, width, height), width * height
    else:
        check_polygon(pixels, size)
        (box, area), polygons = _box_and_area(pixels), [pixels]
    try:
        check_box(box, size)
    except BadAnnotation as bad:
        raise BadAnnotation("box", f"the box {bad.reason}, in fractions 0 to 1 of it") from None
    return Row(image, len(builder.rows) + 1, int(label), box, False, area, () if masks is False else polygons)


def _box_and_area(polygon: "array[float]") -> tuple[Box, float]:
    x, y = polygon[0::2], polygon[1::2]
    box = min(x), min(y), max(x) - min(x), max(y) - min(y)
    twice = sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(x)))  # shoelace formula
    return box, abs(twice) / 2
