"""Pascal VOC annotations: an XML file for each image."""

import os
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from metaformer.data.class_lists import (
    BACKGROUND,
    LABELMAP,
    Names,
    check_class_names,
    class_list,
    given_names,
    read_class_list,
    read_labelmap,
)
from metaformer.data.folder import EXTENSIONS, UNREAD, read_split_list, unread_image
from metaformer.data.image import image_size
from metaformer.errors import DataError
from metaformer.storage import read_bytes
from metaformer.tasks.detection.formats.annotations import (
    BOXES_DO,
    XYWH,
    AnnotationBuilder,
    Annotations,
    BadAnnotation,
    Border,
    ImageFiles,
    check_size,
    file_names,
)
from metaformer.tasks.detection.formats.layouts import SplitPaths
from metaformer.tasks.detection.instances import Row

_MAX_BYTES: Final = 10_000_000
"""Size of one file."""
_MAX_DEPTH: Final = 20
"""Nesting of elements."""
_SIDES: Final = ("xmin", "ymin", "xmax", "ymax")


def read_voc(paths: SplitPaths, classes: Names, masks: bool | None, clip: bool = False) -> Annotations:
    """Read and validate the XML files of a split, whose images ImageSets/Main/SPLIT.txt lists.

    Pixels are counted from 1, the last one included; `difficult` objects count as crowds. FiftyOne writes no
    list, and counts from 0, the last one excluded.

    Args:
        paths: the folders of the files and of the images.
        classes: class names, or a text file of them, in the order of labels; by default those of classes.txt,
            or VOC's own 20.
        masks: whether every object must have an outline, which VOC objects do not have.
        clip: clip boxes over the border of their image.

    Raises:
        DataError: the list of images cannot be read, or masks are asked for.
    """
    if masks:
        raise DataError(f"{paths.labels}: the layout voc has boxes, no masks; {BOXES_DO}")
    builder = AnnotationBuilder(_classes(paths, classes), clip=clip)
    labels = {name: label for label, name in enumerate(builder.classes)}
    files = ImageFiles(paths.images)
    images = _by_stem(paths.images)
    for stem in _stems(paths, images, builder):
        name, *others = images.get(stem, [f"{stem}.jpg"])
        if others:
            same = (
                f"{paths.images / others[0]}: has the name of {paths.images / name}, so both would have one"
            )
            builder.add_fault("image", f"{same} annotation file: rename one")
            continue
        if os.path.splitext(name)[1].lower() in UNREAD:
            builder.add_fault("image", str(unread_image(paths.images / name)))
            continue
        try:
            files.find(name)
        except BadAnnotation as bad:
            builder.add_fault("image", f"{_source(paths)}: {stem}: {bad.reason}")
            continue
        try:
            _read_image(builder, paths, stem, name, labels)
        except DataError as error:
            builder.add_fault("annotation", str(error))
    return builder.build()


def _source(paths: SplitPaths) -> Path:
    """What says which images a split has: its list, or the folder of annotations."""
    listed = paths.variant.split_list
    return paths.root / listed.format(split=paths.split) if listed else paths.labels


def _stems(paths: SplitPaths, images: dict[str, list[str]], builder: AnnotationBuilder) -> list[str]:
    """Names without extension of the images of a split."""
    annotated = {name.removesuffix(".xml") for name in file_names(paths.labels) if name.endswith(".xml")}
    if not paths.variant.split_list:
        if bare := len(images.keys() - annotated):
            builder.unused.append(f"{paths.images}: {bare:,} image(s) without annotations are not used")
        return paths.select(sorted(annotated))

    def add_double(error: DataError) -> None:
        builder.add_fault("image", str(error))

    return read_split_list(_source(paths), (images.keys() | annotated).__contains__, add_double)


def _classes(paths: SplitPaths, given: Names) -> tuple[str, ...]:
    names, _ = given_names(given)
    if names is not None:
        return names
    own = paths.root / "classes.txt"
    if not own.is_file() and (paths.root / LABELMAP).is_file():
        labels = read_labelmap(paths.root / LABELMAP)
        return check_class_names([name for name in labels if name != BACKGROUND], paths.root / LABELMAP)
    return read_class_list(own) if own.is_file() else class_list("voc").names[1:]  # without background


def _by_stem(folder: Path) -> dict[str, list[str]]:
    """Image files by their names without extension."""
    images: dict[str, list[str]] = {}
    names = sorted(file_names(folder))
    for name in names:
        stem, extension = os.path.splitext(name)
        if extension.lower() in EXTENSIONS:
            images.setdefault(stem, []).append(name)
    for name in names:
        stem, extension = os.path.splitext(name)
        if extension.lower() in UNREAD and stem not in images:
            images[stem] = [name]
    return images


def _read_image(
    builder: AnnotationBuilder, paths: SplitPaths, stem: str, name: str, labels: dict[str, int]
) -> None:
    file = paths.labels / f"{stem}.xml"
    root = read_xml(file)
    size = _size(root, file, paths.images / name)
    image = builder.add_image(name, size)
    for number, element in enumerate(root.findall("object"), start=1):
        try:
            border, where = builder.border(image), f"{file}: object {number}"
            label, crowd, box = _object(element, labels, border, paths)
        except BadAnnotation as bad:
            builder.add_fault(bad.kind, f"{where}: {bad.reason}", one_object=True)
        else:
            row = Row(image, len(builder.rows) + 1, label, box, crowd, box[2] * box[3])
            builder.add_row(row, border, where)


def _size(root: Element, file: Path, image: Path) -> tuple[int, int]:
    """Width and height in the file, or the image's own if there are none."""
    sides = [(root.findtext(f"size/{side}") or "0").strip() for side in ("width", "height")]
    if sides == ["0", "0"]:
        return image_size(image)
    try:
        return check_size(*map(int, sides))
    except (ValueError, BadAnnotation) as error:
        raise DataError(f"{file}: size is {' x '.join(sides)}, not an image's") from error


def _object(
    element: Element, labels: dict[str, int], border: Border, paths: SplitPaths
) -> tuple[int, bool, XYWH]:
    """Label, whether it is difficult, and box of an object."""
    name = (element.findtext("name") or "").strip()
    if name not in labels:
        hint = f"list the data set's own in {paths.root / 'classes.txt'}"
        raise BadAnnotation("category", f"name {name!r} is not among the {len(labels)} classes: {hint}")
    values = [(element.findtext(f"bndbox/{side}") or "").strip() for side in _SIDES]
    shown = " ".join(f"{side} {value or '?'}" for side, value in zip(_SIDES, values, strict=True))
    try:
        left, top, right, bottom = map(float, values)
    except ValueError:
        raise BadAnnotation("box", f"bndbox {shown}: it must be four numbers") from None
    first = paths.variant.first_pixel
    box = left - first, top - first, right - left + first, bottom - top + first
    try:
        box = border.fit_box(box)
    except BadAnnotation as bad:
        raise BadAnnotation(bad.kind, f"bndbox {shown} {bad.reason}") from None
    return labels[name], (element.findtext("difficult") or "").strip() == "1", box


def read_xml(file: Path) -> Element:
    """Read an XML file safely: no document types, no entities, limits on size and depth.

    Raises:
        DataError: it cannot be read, is too large or too deep, or declares a document type or entities.
    """
    builder, depth = TreeBuilder(), 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise DataError(f"{file}: elements are nested more than {_MAX_DEPTH} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise DataError(f"{file}: declares a document type, which may define entities: remove it")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(read_bytes(file, largest=_MAX_BYTES), True)
        return builder.close()
    except DataError:
        raise
    except (expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        raise DataError(f"{file}: cannot be read as XML ({error})") from error
