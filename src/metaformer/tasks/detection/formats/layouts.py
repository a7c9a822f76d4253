"""Layouts of detection data sets on disk: COCO's JSON, Pascal VOC's XML, YOLO's text files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from metaformer.data.divide import FLAT_SPLITS, select_split
from metaformer.errors import DataError, UnknownName
from metaformer.storage import as_path

_COCO: Final = {"train": "train2017", "val": "val2017"}
IMAGES: Final = ("{split}", "images/{split}", "images")
"""Folders of COCO's images; the last is CVAT's."""
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
    flat: bool = False
    """No splits: one folder, of which `val` takes a fifth, `train` the others and `all` everything."""
    split_list: str = ""
    """Text file of the images of a split, if folders hold those of all."""
    first_pixel: int = 0
    """1 if corners of boxes are pixels counted from 1, the last one included; 0 if they are edges."""


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
    variant: LayoutVariant

    def select(self, names: Sequence[str]) -> list[str]:
        """Those of the images in the folder that are of this split; see `select_split`."""
        return select_split(names, self.split, self.root) if self.variant.flat else list(names)


DETECTION_LAYOUTS: Final = {
    layout.name: layout
    for layout in (
        DetectionLayout(
            "coco",
            (
                LayoutVariant("annotations/instances_{split}.json", IMAGES, _COCO),
                LayoutVariant("annotations/instances_{split}.json", IMAGES),
                LayoutVariant("{split}/_annotations.coco.json", ("{split}",), _ROBOFLOW),
                LayoutVariant("{split}/labels.json", ("{split}/data",)),
            ),
        ),
        DetectionLayout(
            "voc",
            (
                LayoutVariant(
                    "Annotations", ("JPEGImages",), split_list="ImageSets/Main/{split}.txt", first_pixel=1
                ),
                LayoutVariant("{split}/labels", ("{split}/data",)),
                LayoutVariant("labels", ("data",), flat=True),
            ),
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
                LayoutVariant("obj_{split}_data", ("obj_{split}_data",)),
                LayoutVariant("labels", ("images",), flat=True),
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


def _is_flat(labels: Path, suffix: str) -> bool:
    """Whether a folder holds annotation files itself, and no folders."""
    if not labels.is_dir():
        return False
    entries = list(labels.iterdir())
    return any(entry.suffix == suffix for entry in entries) and not any(entry.is_dir() for entry in entries)


def _hint(layout: DetectionLayout, root: Path) -> str:
    """Which options would read a data set of another layout; empty if it is of this one."""
    other = recognize_layout(root)
    if other is None or other[0] is layout:
        return ""
    name = other[0].name
    return f"; it looks like the layout {name} (train: --detect.layout {name}, others: --layout {name})"


def find_split(layout: DetectionLayout, root: Path, split: str, whole: bool = False) -> SplitPaths:
    """Paths of a split; with `whole`, of all images of a folder without splits.

    Raises:
        DataError: there are no annotations, or no folder of images.
    """
    for variant in layout.variants:
        name = variant.splits.get(split, split)
        labels = root / variant.labels.format(split=name)
        if variant.flat and (split not in FLAT_SPLITS or not _is_flat(labels, layout.suffix)):
            continue
        if labels.is_dir() if layout.suffix else labels.is_file():
            folders = [root / folder.format(split=name) for folder in variant.images]
            images = next((folder for folder in folders if folder.is_dir()), None)
            if images is None:
                expected = " or ".join(map(str, folders))
                raise DataError(f"{labels}: no folder of its images, {expected}{_hint(layout, root)}")
            name = FLAT_SPLITS[-1] if variant.flat and whole else name
            return SplitPaths(layout.name, name, root, labels, images, variant)
    places = dict.fromkeys(v.labels.format(split=v.splits.get(split, split)) for v in layout.variants)
    none = f"{root}: no annotations of split {split!r}: expected {' or '.join(places)}"
    raise DataError(f"{none}{_hint(layout, root)}")
