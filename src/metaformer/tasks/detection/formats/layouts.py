"""Layouts of detection data sets on disk: COCO's JSON, Pascal VOC's XML, YOLO's text files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from metaformer.errors import DataError, UnknownName
from metaformer.storage import as_path

_COCO: Final = {"train": "train2017", "val": "val2017"}
_ROBOFLOW: Final = {"val": "valid"}


@dataclass(frozen=True)
class LayoutVariant:
    """Paths of a layout relative to its root; `{split}` stands for the split."""

    labels: str
    """File of all annotations, or folder of a file for each image."""
    images: tuple[str, ...]
    """Folders of images; the first that exists is used."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """Names of the splits `train` and `val`, if they are others."""


@dataclass(frozen=True)
class DetectionLayout:
    """Where images and annotations of a split are."""

    name: str
    variants: tuple[LayoutVariant, ...]
    """The first whose annotations exist is used."""
    subfolders: tuple[str, ...] = ()
    """Folders that the archive unpacks to, any of which may be the root."""
    suffix: str = ""
    """Suffix of annotation files, if they lie in a folder."""


@dataclass(frozen=True)
class SplitPaths:
    """Paths of one split."""

    layout: str
    split: str
    """As the layout calls it."""
    root: Path
    """The data set."""
    labels: Path
    images: Path


DETECTION_LAYOUTS: Final = {
    layout.name: layout
    for layout in (
        DetectionLayout(
            "coco",
            (
                LayoutVariant("annotations/instances_{split}.json", ("{split}", "images/{split}"), _COCO),
                LayoutVariant("annotations/instances_{split}.json", ("{split}", "images/{split}")),
                LayoutVariant("{split}/_annotations.coco.json", ("{split}",), _ROBOFLOW),
            ),
        ),
        DetectionLayout(
            "voc",
            (LayoutVariant("Annotations", ("JPEGImages",)),),
            subfolders=("VOC2012", "VOCdevkit/VOC2012", "VOC2007", "VOCdevkit/VOC2007"),
            suffix=".xml",
        ),
        DetectionLayout(
            "yolo",
            (
                LayoutVariant("labels/{split}", ("images/{split}",)),
                LayoutVariant("labels/{split}", ("images/{split}",), _COCO),
                LayoutVariant("{split}/labels", ("{split}/images",)),
                LayoutVariant("{split}/labels", ("{split}/images",), _ROBOFLOW),
            ),
            suffix=".txt",
        ),
    )
}


def recognize_layout(root: str | Path) -> tuple[DetectionLayout, Path] | None:
    """Layout of a data set and the folder that has it, or None if it is none of detection."""
    root = as_path(root, "root", DataError, expand=True)
    for layout in DETECTION_LAYOUTS.values():
        for folder in ("", *layout.subfolders):
            if any(_exists(root / folder, variant, layout.suffix) for variant in layout.variants):
                return layout, root / folder
    return None


def _exists(root: Path, variant: LayoutVariant, suffix: str) -> bool:
    """Whether annotations of any split exist."""
    for labels in root.glob(variant.labels.format(split="*")):
        if not suffix or (labels.is_dir() and next(labels.rglob(f"*{suffix}"), None) is not None):
            return True
    return False


def find_layout(root: str | Path, name: str) -> tuple[DetectionLayout, Path]:
    """The layout of this name, or with `auto` the recognized one, and the folder that has it.

    Raises:
        DataError: none is recognized.
        UnknownName: an unknown layout.
    """
    root = as_path(root, "root", DataError, expand=True)
    if name != "auto" and name not in DETECTION_LAYOUTS:
        raise UnknownName("layout", name, [*DETECTION_LAYOUTS, "auto"])
    if not root.is_dir():
        raise DataError(f"{root}: {'is a file, not a folder' if root.is_file() else 'no such folder'}")
    if name == "auto":
        found = recognize_layout(root)
        if found is None:
            content = ", ".join(sorted(entry.name for entry in root.iterdir())[:10]) or "nothing"
            known = ", ".join(DETECTION_LAYOUTS)
            raise DataError(
                f"{root}: no known layout of objects; it holds {content}; set detect.layout ({known})"
            )
        return found
    layout = DETECTION_LAYOUTS[name]
    roots = [root / folder for folder in ("", *layout.subfolders)]
    return layout, next((r for r in roots if any(_exists(r, v, "") for v in layout.variants)), root)


def _hint(name: str) -> str:
    """Which options would read a data set of another layout."""
    return f"; it looks like the layout {name} (train: --detect.layout {name}, others: --layout {name})"


def find_split(layout: DetectionLayout, root: Path, split: str) -> SplitPaths:
    """Paths of a split.

    Raises:
        DataError: there are no annotations, or no folder of images.
    """
    for variant in layout.variants:
        name = variant.splits.get(split, split)
        labels = root / variant.labels.format(split=name)
        if labels.is_dir() if layout.suffix else labels.is_file():
            folders = [root / folder.format(split=name) for folder in variant.images]
            images = next((folder for folder in folders if folder.is_dir()), None)
            if images is None:
                raise DataError(f"{labels}: no folder of its images, {' or '.join(map(str, folders))}")
            return SplitPaths(layout.name, name, root, labels, images)
    expected = dict.fromkeys(v.labels.format(split=v.splits.get(split, split)) for v in layout.variants)
    other = recognize_layout(root)
    hint = "" if other is None or other[0] is layout else _hint(other[0].name)
    raise DataError(f"{root}: no annotations of split {split!r}: expected {' or '.join(expected)}{hint}")
