"""Directory layouts of segmentation data sets: how images and label maps are found and paired by name."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from metaformer.data.divide import select_split
from metaformer.data.folder import EXTENSIONS, UNREAD, files_below, read_split_list, unread_image
from metaformer.errors import DataError, UnknownName
from metaformer.storage import as_path

_CITYSCAPES: Final = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""Label ids of the evaluated classes, in the order of their train ids; ids go up to 33."""
_COCO_UNUSED: Final = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Of COCO's 182 categories, counted from 0, those without annotations."""


@dataclass(frozen=True)
class LabelEncoding:
    """Values in label maps of one kind."""

    suffix: str
    """What follows the image's name, before `.png`."""
    values: tuple[int, ...] | None = None
    """Value of each class; None for 0, 1, 2 and so on."""
    ignored: tuple[int, ...] = ()
    """Values of ignored pixels, in addition to 255."""


@dataclass(frozen=True)
class Layout:
    """Directory layout; paths are relative to the data set, and `{split}` in them is replaced."""

    name: str
    markers: tuple[tuple[str, ...], ...]
    """The layout is recognized if all paths of any of these exist; `*` stands for any name."""
    images: str
    """Folder of images."""
    label_maps: tuple[str, ...]
    """Folders of label maps; those that exist are searched in this order."""
    subfolders: tuple[str, ...] = ()
    """Folders that the archive unpacks to, in which the data set may lie."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """The layout's names of `train` and `val`, if others."""
    image_suffix: str = ""
    """Ending of image names, before the extension."""
    encodings: tuple[LabelEncoding, ...] = (LabelEncoding(""),)
    """Kinds of label maps; the first that exists is used."""
    split_list: str | None = None
    """Text file that lists the images of a split."""
    names_file: str | None = None
    """File of class names."""
    class_list: str | None = None
    """Published class list, used if there is no such file."""
    reduce_zero_label: bool | None = None
    """Whether value 0 is ignored by default; None if it is always a class."""
    labelmap: bool = False
    """Whether labelmap.txt may name the classes and the colors that stand for them."""
    flat: tuple[str, str] | None = None
    """Folders of images and label maps of a data set without splits."""


LAYOUTS: Final = {
    layout.name: layout
    for layout in (
        Layout(
            "folders",
            markers=(("images", "classes.txt"),),
            images="images/{split}",
            label_maps=("annotations/{split}", "labels/{split}", "masks/{split}"),
            names_file="classes.txt",
            reduce_zero_label=False,
            labelmap=True,
        ),
        Layout(
            "ade20k",
            markers=(("images/training", "annotations"), ("images/validation", "annotations")),
            images="images/{split}",
            label_maps=("annotations/{split}",),
            subfolders=("ADEChallengeData2016",),
            splits={"train": "training", "val": "validation"},
            names_file="objectInfo150.txt",
            class_list="ade20k",
            reduce_zero_label=True,
        ),
        Layout(
            "voc",
            markers=(("JPEGImages", "SegmentationClass"),),
            images="JPEGImages",
            label_maps=("SegmentationClass", "SegmentationClassAug"),
            subfolders=("VOC2012", "VOCdevkit/VOC2012"),
            split_list="ImageSets/Segmentation/{split}.txt",
            class_list="voc",
            labelmap=True,
        ),
        Layout(
            "cityscapes",
            markers=(("leftImg8bit", "gtFine"),),
            images="leftImg8bit/{split}",
            label_maps=("gtFine/{split}",),
            image_suffix="_leftImg8bit",
            encodings=(
                LabelEncoding("_gtFine_labelIds", _CITYSCAPES, tuple(sorted({*range(34)} - {*_CITYSCAPES}))),
                LabelEncoding("_gtFine_labelTrainIds"),
            ),
            class_list="cityscapes",
        ),
        Layout(
            "coco_stuff",
            markers=(("images/train2017",), ("images/val2017",)),
            images="images/{split}",
            label_maps=("annotations/{split}", "stuffthingmaps/{split}"),
            splits={"train": "train2017", "val": "val2017"},
            encodings=(
                LabelEncoding("_labelTrainIds"),
                LabelEncoding("", tuple(sorted({*range(182)} - {*_COCO_UNUSED}))),
            ),
            class_list="coco_stuff",
        ),
        Layout(
            "fiftyone",
            markers=(("data", "labels"), ("*/data", "*/labels")),
            images="{split}/data",
            label_maps=("{split}/labels",),
            reduce_zero_label=False,
            labelmap=True,
            flat=("data", "labels"),
        ),
    )
}


def find_layout(root: str | Path) -> tuple[Layout, Path] | None:
    """Recognize the layout of a data set; returns it with the folder of the data set, or None."""
    root = as_path(root, "root", DataError, expand=True)
    for layout in LAYOUTS.values():
        for subfolder in ("", *layout.subfolders):
            folder = root / subfolder
            if any(all(any(folder.glob(path)) for path in paths) for paths in layout.markers):
                return _flat(layout, folder), folder
    folders = LAYOUTS["folders"]
    if (root / "images").is_dir() and any((root / path).parent.is_dir() for path in folders.label_maps):
        return folders, root
    return None


def has_label_maps(root: str | Path) -> bool:
    """Whether a layout is recognized, and there is any label map in its folders."""
    found = find_layout(root)
    if found is None:
        return False
    layout, root = found
    folders = (folder for name in layout.label_maps for folder in root.glob(name.format(split="*")))
    return any(folder.is_dir() and next(folder.rglob("*.png"), None) is not None for folder in folders)


def choose_layout(root: str | Path, name: str) -> tuple[Layout, Path]:
    """Layout by name, or with `auto` the one recognized, with the folder of the data set.

    Raises:
        DataError: no layout is recognized.
        UnknownName: there is no layout of this name.
    """
    root = as_path(root, "root", DataError, expand=True)
    if name == "auto":
        found = find_layout(root)
        if found is None:
            raise DataError(f"{root}: {_contents(root)}; set segment.layout ({', '.join(LAYOUTS)})")
        return found
    if name not in LAYOUTS:
        raise UnknownName("layout", name, [*LAYOUTS, "auto"])
    layout = LAYOUTS[name]
    first = layout.images.split("/")[0]
    root = next((root / path for path in layout.subfolders if (root / path / first).is_dir()), root)
    return _flat(layout, root), root


def _flat(layout: Layout, root: Path) -> Layout:
    """The layout with the folders that the data set has, if that has no splits."""
    if layout.flat is None or not (root / layout.flat[0]).is_dir():
        return layout
    return replace(layout, images=layout.flat[0], label_maps=layout.flat[1:])


def _contents(root: Path) -> str:
    if not root.is_dir():
        return "is a file, not a folder" if root.is_file() else "no such folder"
    entries = ", ".join(sorted(entry.name for entry in root.iterdir())[:10]) or "nothing"
    return f"no known layout of images and label maps; it holds {entries}"


@dataclass(frozen=True)
class ImagePairs:
    """Images and label maps of a split; paths are relative to the data set."""

    split: str
    """The layout's name of the split."""
    root: Path
    folder: Path
    """Folder of the images."""
    images: tuple[str, ...]
    """Images with a label map, sorted by name."""
    label_maps: tuple[str, ...]
    """Label map of each image."""
    encoding: LabelEncoding
    """Values in the label maps."""
    errors: tuple[str, ...]
    """Problems to fix, such as images without a label map."""
    unused: tuple[str, ...]
    """A line for each kind of files that are not used."""
    unpaired: tuple[Path, ...]
    """Label maps without image."""


def find_pairs(layout: Layout, root: Path, split: str, whole: bool = False) -> ImagePairs:
    """Find the images of a split and their label maps; with `whole`, all of a folder without splits.

    Raises:
        DataError: there are no images, or no label maps at all.
    """
    split = layout.splits.get(split, split)
    unpaired: tuple[Path, ...] = ()
    folder = root / layout.images.format(split=split)
    errors: list[DataError] = []
    images, unread, unused = _images(layout, root, folder, errors)
    encoding, label_maps = _label_maps(layout, root, split, errors, unused)
    if layout.split_list is not None:
        split_list = root / layout.split_list.format(split=split)
        known = {*images, *unread, *label_maps}
        listed = read_split_list(split_list, known.__contains__, errors.append)
        for stem in listed:
            if stem not in images:
                none = DataError(f"{folder / stem}.jpg: no such image")
                errors.append(unread_image(root / unread[stem]) if stem in unread else none)
        images = {stem: images[stem] for stem in listed if stem in images}
    else:
        errors += [unread_image(root / name) for name in unread.values()]
        known = images.keys() | unread.keys()
        unpaired = tuple(root / name for stem, name in label_maps.items() if stem not in known)
        if "{split}" not in layout.images:
            images = {stem: images[stem] for stem in select_split(list(images), split, root, whole)}
    if not images and not errors:
        raise DataError(f"{folder}: no images")
    expected = root / layout.label_maps[0].format(split=split)
    for stem in images:
        if stem not in label_maps:
            missing = expected / f"{stem}{encoding.suffix}.png"
            errors.append(DataError(f"{root / images[stem]}: no label map {missing}"))
    stems = sorted(images.keys() & label_maps.keys())
    return ImagePairs(
        split,
        root,
        folder,
        tuple(images[stem] for stem in stems),
        tuple(label_maps[stem] for stem in stems),
        encoding,
        tuple(str(error) for error in errors),
        tuple(unused),
        unpaired,
    )


def _images(
    layout: Layout, root: Path, folder: Path, errors: list[DataError]
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Images by their names without suffix and extension, those of formats that are not read, and lines.

    Each line is about another kind of file.
    """
    _check_folder(root, folder)
    images: dict[str, str] = {}
    unread: dict[str, str] = {}
    others: Counter[str] = Counter()
    for stem, extension, name in _files(root, folder, errors):
        if extension not in EXTENSIONS | UNREAD or not stem.endswith(layout.image_suffix):
            others[extension or "without extension"] += 1
            continue
        stem = stem.removesuffix(layout.image_suffix)
        if extension in UNREAD:
            unread[stem] = name
        elif stem in images:
            same = f"{root / name}: has the name of {root / images[stem]}, so both would have one label map"
            errors.append(DataError(same))
        else:
            images[stem] = name
    raw = unread.keys() & images.keys()  # of images that are used
    others.update(os.path.splitext(unread.pop(stem))[1].lower() for stem in sorted(raw))
    return images, unread, _unused(folder, others)


def _unused(folder: Path, kinds: Mapping[str, int]) -> list[str]:
    return [f"{folder}: {count:,} {kind} file(s) are not used" for kind, count in kinds.items()]


def _label_maps(
    layout: Layout, root: Path, split: str, errors: list[DataError], unused: list[str]
) -> tuple[LabelEncoding, dict[str, str]]:
    """Label maps by the names of their images, and their encoding; images of other formats are `unused`."""
    folders = [root / name.format(split=split) for name in layout.label_maps]
    existing = [folder for folder in folders if folder.is_dir()]
    if not existing:
        names = " or ".join(str(folder) for folder in folders)
        raise DataError(f"{root}: no folder of label maps: {names}")
    found: dict[str, str] = {}
    others: Counter[str] = Counter()
    before = len(errors)
    for folder in existing:
        for stem, extension, name in _files(root, folder, errors):
            if extension == ".png":
                found.setdefault(stem, name)
            else:
                others[extension or "without extension"] += 1
    for encoding in layout.encodings:
        suffix = encoding.suffix
        chosen = {stem.removesuffix(suffix): name for stem, name in found.items() if stem.endswith(suffix)}
        if chosen:
            images = {kind: count for kind, count in others.items() if kind in EXTENSIONS | UNREAD}
            unused += _unused(existing[0], images)
            return encoding, chosen
    if errors[before:]:
        raise errors[before]
    suffixes = " or ".join(f"*{encoding.suffix}.png" for encoding in layout.encodings)
    holds = ", ".join(f"{count:,} {kind}" for kind, count in sorted(others.items()))
    holds = f"; it holds {holds} file(s)" if holds else ""
    raise DataError(f"{existing[0]}: no label maps {suffixes}{holds}")


def _files(root: Path, folder: Path, errors: list[DataError]) -> Iterable[tuple[str, str, str]]:
    """Of each file in a folder: its path without extension, its extension, and its path in the data set."""
    prefix = folder.relative_to(root).as_posix()
    for name in files_below(folder, errors.append):
        stem, extension = os.path.splitext(name)
        yield stem, extension.lower(), f"{prefix}/{name}"


def _check_folder(root: Path, folder: Path) -> None:
    if not root.is_dir():
        raise DataError(f"{root}: {'is a file, not a folder' if root.is_file() else 'no such folder'}")
    if not folder.is_dir():
        above = folder.parent
        names = sorted(entry.name for entry in above.iterdir() if entry.is_dir()) if above.is_dir() else []
        holds = f"; {above} holds {', '.join(names[:10])}" if names else ""
        raise DataError(f"{folder}: no such folder{holds}")
