"""YOLO annotations: a text file for each image, a line for each object."""

import os
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from metaformer.data.class_lists import Names, given_names, read_class_list
from metaformer.data.folder import EXTENSIONS, UNREAD, files_below, unread_image
from metaformer.data.image import image_size
from metaformer.errors import DataError
from metaformer.serialize import parse_yaml, shown
from metaformer.storage import read_text
from metaformer.tasks.detection.formats.annotations import (
    BOXES_DO,
    XYWH,
    AnnotationBuilder,
    Annotations,
    BadAnnotation,
    Border,
    polygon_area,
)
from metaformer.tasks.detection.formats.layouts import SplitPaths
from metaformer.tasks.detection.instances import Row

_MAX_BYTES: Final = 1_000_000
"""Size of data.yaml."""
_LINE: Final = "class, x and y of the center, width and height; or class and x, y of 3 or more points"
_VISIBILITY: Final = (0, 1, 2)
"""Third number of keypoints: not labeled, hidden, visible."""


def read_yolo(paths: SplitPaths, classes: Names, masks: bool | None, clip: bool = False) -> Annotations:
    """Read and validate the text files of a split; an image without a file has no objects.

    A line is `class x y width height`, with the center of the box, or `class x y x y …`, a polygon; all but
    the class are fractions of the image's width and height. Of images the headers are read. Where data.yaml
    says kpt_shape, a box is followed by keypoints, which are not used.

    Args:
        paths: the folders of the files and of the images.
        classes: class names, or a text file of them, in the order of labels; by default those of data.yaml or
            classes.txt.
        masks: whether every object must be a polygon; None keeps those that there are.
        clip: clip objects over the border of their image.

    Raises:
        DataError: classes have no names, or two lists of them differ.
    """
    names, keypoints = _description(paths, classes)
    builder = AnnotationBuilder(names, clip=clip)
    errors: list[DataError] = []
    labels = dict.fromkeys(name for name in files_below(paths.labels, errors.append) if _is_label(name))
    images, unread = _image_files(paths.images, builder, errors)
    chosen = set(paths.select(list(images.values())))
    for stem, name in images.items():
        annotated = f"{stem}.txt" in labels
        labels.pop(f"{stem}.txt", None)
        if name not in chosen:
            continue
        try:
            image = builder.add_image(name, image_size(paths.images / name))
        except DataError as error:
            builder.add_fault("image", str(error))
            continue
        if not annotated:
            no_file = f"{paths.images / name}: no annotations {paths.labels / stem}.txt: it counts as empty"
            builder.add_oddity("unlabeled", no_file)
        else:
            _read_image(builder, paths.labels / f"{stem}.txt", image, masks, keypoints)
    for stem in unread:
        labels.pop(f"{stem}.txt", None)
    for unreadable in errors:
        builder.add_fault("image", str(unreadable))
    if labels and not builder.rows and not builder.faults:
        none = f"{paths.labels}: none of its {len(labels):,} files has the name of an image"
        builder.add_fault("annotation", none)
    for name in labels:
        builder.add_oddity("unpaired", f"{paths.labels / name}: annotations without image")
    return builder.build()


def _image_files(
    folder: Path, builder: AnnotationBuilder, errors: list[DataError]
) -> tuple[dict[str, str], dict[str, str]]:
    """Images by their names without extension, and those of formats that are not read."""
    images: dict[str, str] = {}
    unread: dict[str, str] = {}
    for name in files_below(folder, errors.append):
        stem, extension = os.path.splitext(name)
        if extension.lower() in UNREAD:
            unread[stem] = name
        elif extension.lower() in EXTENSIONS and stem in images:
            both = f"{folder / images[stem]} has the same name, and so the same annotations"
            builder.add_fault("image", f"{folder / name}: {both}: rename one")
        elif extension.lower() in EXTENSIONS:
            images[stem] = name
    for stem in sorted(unread.keys() - images.keys()):  # others are raw forms of images that are used
        builder.add_fault("image", str(unread_image(folder / unread[stem])))
    return images, unread


def _is_label(name: str) -> bool:
    return name.endswith(".txt") and name != "classes.txt"  # which some programs put there


def _description(paths: SplitPaths, given: Names) -> tuple[tuple[str, ...], int | None]:
    """Class names, and how many numbers of keypoints follow each box; None where objects have none."""
    names, where = given_names(given)
    keypoints = None
    file, text = (
        next((paths.root / name for name in names if (paths.root / name).is_file()), paths.root / names[0])
        for names in (("data.yaml", "dataset.yaml"), ("classes.txt", "obj.names"))
    )
    if file.is_file():
        content = _read_yaml(file)
        own, keypoints = _yaml_names(content, file), _keypoint_numbers(content, file)
    elif text.is_file():
        file, own = text, read_class_list(text)
    elif names is None:
        raise DataError(f"{file}: no such file: name the classes in it (names: [cat, dog])")
    else:
        return names, None
    if names is not None and names != own:
        raise DataError(f"{where}: its {len(names)} classes are not the {len(own)} of {file} in their order")
    return own, keypoints


def _read_yaml(file: Path) -> dict[Any, Any]:
    content = parse_yaml(read_text(file, largest=_MAX_BYTES), file)
    return content if isinstance(content, dict) else {}


def _yaml_names(content: dict[Any, Any], file: Path) -> tuple[str, ...]:
    names = content.get("names")
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


def _keypoint_numbers(content: dict[Any, Any], file: Path) -> int | None:
    """Numbers of an object's keypoints by kpt_shape, their count and 2 or 3 numbers for each."""
    match content.get("kpt_shape"):
        case None:
            return None
        case [int(count), int(each)] if count > 0 and each in (2, 3):
            return count * each
        case value:
            raise DataError(f"{file}: kpt_shape is {shown(value)}: write the number of keypoints, and 2 or 3")


def _read_image(
    builder: AnnotationBuilder, file: Path, image: int, masks: bool | None, keypoints: int | None
) -> None:
    try:
        lines = read_text(file, tell=lambda line: builder.add_oddity("encoding", line)).splitlines()
    except DataError as error:
        builder.add_fault("annotation", str(error))
        return
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            border, where = builder.border(image), f"{file}: line {number}"
            row = _row(line.split(), builder, image, border, masks, keypoints)
        except BadAnnotation as bad:
            builder.add_fault(bad.kind, f"{where}: {bad.reason}", one_object=True)
        else:
            builder.add_row(row, border, where)


def _row(
    values: Sequence[str],
    builder: AnnotationBuilder,
    image: int,
    border: Border,
    masks: bool | None,
    keypoints: int | None,
) -> Row:
    size, classes = border.size, len(builder.classes)
    try:
        label, *numbers = map(float, values)
    except ValueError:
        raise BadAnnotation("annotation", f"{' '.join(values)!r:.60} holds no numbers: {_LINE}") from None
    if label not in range(classes):
        number = shown(values[0], quote=False)
        raise BadAnnotation("category", f"class {number} is not among the {classes}, counted from 0")
    if keypoints is not None:
        if len(numbers) not in (4, 4 + keypoints):
            expected = f"class, 4 of the box and {keypoints} of keypoints, as kpt_shape in data.yaml says"
            raise BadAnnotation("annotation", f"holds {len(values)} numbers: {expected}")
        del numbers[4:]
    elif len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise BadAnnotation("annotation", f"holds {len(values)} numbers: {_LINE}")
    elif _has_visibility(numbers):
        remedy = f"write kpt_shape: [{len(numbers) // 3 - 1}, 3] into data.yaml"
        raise BadAnnotation("annotation", f"holds a box with keypoints, not a polygon: {remedy}")
    pixels = array("d", (number * size[index % 2] for index, number in enumerate(numbers)))
    polygons: list[array[float]] = []
    if len(numbers) == 4:
        if masks:
            raise BadAnnotation("segmentation", f"is a box, no polygon to make a mask of; {BOXES_DO}")
        x, y, width, height = pixels
        box = (x - width / 2, y - height / 2, width, height)
    else:
        polygons = [border.fit_polygon(pixels)]
        box = _bounds(polygons[0])
    try:
        box = border.fit_box(box)
    except BadAnnotation as bad:
        raise BadAnnotation(bad.kind, f"the box {bad.reason}") from None
    area = polygon_area(polygons[0]) if polygons else box[2] * box[3]
    return Row(image, len(builder.rows) + 1, int(label), box, False, area, () if masks is False else polygons)


def _has_visibility(numbers: Sequence[float]) -> bool:
    """Whether these are a box and two or more keypoints x, y and visibility rather than a polygon."""
    (x, y, width, height), points = numbers[:4], numbers[4:]
    if len(points) < 6 or len(points) % 3 or not all(value in _VISIBILITY for value in points[2::3]):
        return False
    # corners of a whole image are 0 and 1 as well, but no center of a box inside of it
    return 0 < width / 2 <= min(x, 1 - x) + 0.01 and 0 < height / 2 <= min(y, 1 - y) + 0.01


def _bounds(polygon: "array[float]") -> XYWH:
    x, y = polygon[0::2], polygon[1::2]
    return min(x), min(y), max(x) - min(x), max(y) - min(y)
