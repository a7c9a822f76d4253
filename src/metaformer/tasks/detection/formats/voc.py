"""Annotations as Pascal VOC writes them: an XML file for each image."""

import os
from pathlib import Path
from typing import Final
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from metaformer.data.class_lists import Names, class_list, given_names, read_class_list
from metaformer.data.folder import EXTENSIONS, read_split_list
from metaformer.data.image import image_size
from metaformer.errors import DataError
from metaformer.tasks.detection.formats.annotations import Annotated, AnnotationBuilder, ImageFiles, names_in
from metaformer.tasks.detection.formats.layouts import SplitPaths
from metaformer.tasks.detection.formats.rules import BOXES_DO, BadAnnotation, Box, check_box, check_size
from metaformer.tasks.detection.instances import Row

_LARGEST: Final = 10_000_000
"""Bytes of one file."""
_DEEPEST: Final = 20
"""Elements within each other."""
_SIDES: Final = ("xmin", "ymin", "xmax", "ymax")


def read_voc(place: SplitPaths, classes: Names, masks: bool | None) -> Annotated:
    """Read and check the XML files of a split, whose images ImageSets/Main/SPLIT.txt names.

    Pixels are counted from 1, the last one included; `difficult` objects are taken as crowds are.

    Args:
        place: where files and images lie.
        classes: names, or a text file of them, in the order of labels; else classes.txt, else VOC's own 20.
        masks: whether every object must have an outline, which they do not have here.

    Raises:
        DataError: the list of images cannot be read, or masks are asked for.
    """
    if masks:
        raise DataError(
            f"{place.labels}: the layout voc has boxes only: no masks can be learned from it; {BOXES_DO}"
        )
    found = AnnotationBuilder(_classes(place, classes))
    labels = {name: label for label, name in enumerate(found.classes)}
    files = ImageFiles(place.images)
    images = _by_stem(place.images)
    listed = place.home / f"ImageSets/Main/{place.split}.txt"
    for stem in read_split_list(listed):
        name = images.get(stem, f"{stem}.jpg")
        if trouble := files.trouble(name):
            found.fault("image", f"{listed}: {stem}: {trouble}")
            continue
        try:
            _read_one(found, place, stem, name, labels)
        except DataError as error:
            found.fault("annotation", str(error))
    return found.packed()


def _classes(place: SplitPaths, given: Names) -> tuple[str, ...]:
    names, _ = given_names(given)
    if names is not None:
        return names
    own = place.home / "classes.txt"
    return read_class_list(own) if own.is_file() else class_list("voc").names[1:]  # without background


def _by_stem(folder: Path) -> dict[str, str]:
    split = (os.path.splitext(name) for name in sorted(names_in(folder)))
    return {stem: stem + end for stem, end in split if end.lower() in EXTENSIONS}


def _read_one(
    found: AnnotationBuilder, place: SplitPaths, stem: str, name: str, labels: dict[str, int]
) -> None:
    file = place.labels / f"{stem}.xml"
    root = read_xml(file)
    size = _size(root, file, place.images / name)
    image = found.add(name, size)
    for number, part in enumerate(root.findall("object"), start=1):
        try:
            label, crowd, box = _object(part, labels, size)
        except BadAnnotation as bad:
            found.fault(bad.kind, f"{file}: object {number}: {bad.reason}", single=True)
        else:
            row = Row(image, len(found.rows) + 1, label, box, crowd, box[2] * box[3])
            found.rows.append(row)


def _size(root: Element, file: Path, image: Path) -> tuple[int, int]:
    """Width and height as the file says; those of the image where it does not."""
    words = [(root.findtext(f"size/{side}") or "0").strip() for side in ("width", "height")]
    if words == ["0", "0"]:
        return image_size(image)
    try:
        return check_size(*(int(word) for word in words))
    except (ValueError, BadAnnotation) as error:
        raise DataError(f"{file}: size is {' x '.join(words)}, not an image's") from error


def _object(part: Element, labels: dict[str, int], size: tuple[int, int]) -> tuple[int, bool, Box]:
    name = (part.findtext("name") or "").strip()
    if name not in labels:
        hint = "list the data set's own in classes.txt beside Annotations"
        raise BadAnnotation("category", f"name {name!r} is not among the {len(labels)} classes: {hint}")
    words = [(part.findtext(f"bndbox/{side}") or "").strip() for side in _SIDES]
    told = " ".join(f"{side} {word or '?'}" for side, word in zip(_SIDES, words, strict=True))
    try:
        left, top, right, bottom = (float(word) for word in words)
    except ValueError:
        raise BadAnnotation("box", f"bndbox {told}: four numbers are wanted") from None
    box = left - 1, top - 1, right - left + 1, bottom - top + 1
    try:
        check_box(box, size)
    except BadAnnotation as bad:
        raise BadAnnotation("box", f"bndbox {told} {bad.reason}") from None
    return labels[name], (part.findtext("difficult") or "").strip() == "1", box


def read_xml(file: Path) -> Element:
    """Read an XML file without any of what XML files can do to those who read them.

    Raises:
        DataError: it cannot be read, is too large or too deep, or declares a document type or entities.
    """
    builder, depth = TreeBuilder(), 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise DataError(f"{file}: elements are nested more than {_DEEPEST} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: object) -> None:
        raise DataError(f"{file}: declares a document type, through which entities come in: take it out")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        if file.exists() and not file.is_file():  # reading a pipe would wait for ever
            raise DataError(f"{file}: is no file")
        if file.stat().st_size > _LARGEST:
            raise DataError(f"{file}: is larger than the {_LARGEST:,} bytes allowed")
        parser.Parse(file.read_bytes(), True)
        return builder.close()
    except DataError:
        raise
    except (OSError, expat.ExpatError, ValueError, LookupError, AssertionError) as error:
        raise DataError(f"{file}: cannot be read as XML ({error})") from error
