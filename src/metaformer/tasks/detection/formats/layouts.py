"""How data sets of objects lie on disk: as COCO's JSON, Pascal VOC's XML or YOLO's text files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from metaformer.errors import DataError, UnknownName

_COCO: Final = {"train": "train2017", "val": "val2017"}
_ROBOFLOW: Final = {"val": "valid"}


@dataclass(frozen=True)
class LayoutVariant:
    """One way in which a layout puts its files, below the root; `{split}` is replaced."""

    labels: str
    """The file of all annotations, or the folder of those of each image."""
    images: tuple[str, ...]
    """Folders of images; the first that exists is taken."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """What `train` and `val` are called, where they are called otherwise."""


@dataclass(frozen=True)
class DetectionLayout:
    """Where images and annotations of a split lie."""

    name: str
    forms: tuple[LayoutVariant, ...]
    """The first whose annotations exist is taken."""
    home: tuple[str, ...] = ()
    """Folders below the root that the data set may lie in, as its archive unpacks."""
    suffix: str = ""
    """What annotations are told from other files by, where they lie in a folder."""


@dataclass(frozen=True)
class SplitPaths:
    """Where one split lies."""

    layout: str
    split: str
    """As the layout calls it."""
    home: Path
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
            home=("VOC2012", "VOCdevkit/VOC2012", "VOC2007", "VOCdevkit/VOC2007"),
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


def find_detection_layout(root: str | Path) -> tuple[DetectionLayout, Path] | None:
    """Recognize a data set of objects; gives its layout and the folder that has it, or None."""
    root = Path(root).expanduser()
    for layout in DETECTION_LAYOUTS.values():
        for home in ("", *layout.home):
            if any(_has(root / home, form, layout.suffix) for form in layout.forms):
                return layout, root / home
    return None


def _has(home: Path, form: LayoutVariant, suffix: str) -> bool:
    for labels in home.glob(form.labels.format(split="*")):
        if not suffix or (labels.is_dir() and next(labels.rglob(f"*{suffix}"), None) is not None):
            return True
    return False


def choose_detection_layout(root: str | Path, name: str) -> tuple[DetectionLayout, Path]:
    """Give the layout of this name, or with `auto` the one that is recognized, and the folder that has it.

    Raises:
        DataError: none is recognized.
        UnknownName: there is no such layout.
    """
    root = Path(root).expanduser()
    if name != "auto" and name not in DETECTION_LAYOUTS:
        raise UnknownName("layout", name, [*DETECTION_LAYOUTS, "auto"])
    if not root.is_dir():
        raise DataError(f"{root}: {'is a file, not a folder' if root.is_file() else 'no such folder'}")
    if name == "auto":
        found = find_detection_layout(root)
        if found is None:
            there = ", ".join(sorted(entry.name for entry in root.iterdir())[:10]) or "nothing"
            known = ", ".join(DETECTION_LAYOUTS)
            raise DataError(
                f"{root}: no layout of objects that is known; it holds {there}; say detect.layout ({known})"
            )
        return found
    layout = DETECTION_LAYOUTS[name]
    homes = [root / home for home in ("", *layout.home)]
    return layout, next((home for home in homes if any(_has(home, f, "") for f in layout.forms)), root)


def find_place(layout: DetectionLayout, home: Path, split: str) -> SplitPaths:
    """Find the files of a split.

    Raises:
        DataError: there are no annotations, or no folder of images.
    """
    for form in layout.forms:
        name = form.splits.get(split, split)
        labels = home / form.labels.format(split=name)
        if labels.is_dir() if layout.suffix else labels.is_file():
            folders = [home / folder.format(split=name) for folder in form.images]
            images = next((folder for folder in folders if folder.is_dir()), None)
            if images is None:
                raise DataError(f"{labels}: no folder of its images, {' or '.join(map(str, folders))}")
            return SplitPaths(layout.name, name, home, labels, images)
    wanted = dict.fromkeys(form.labels.format(split=form.splits.get(split, split)) for form in layout.forms)
    other = find_detection_layout(home)
    hint = "" if other is None or other[0] is layout else f"; it looks like the layout {other[0].name}"
    raise DataError(f"{home}: no annotations of split {split!r}: {' or '.join(wanted)} is wanted{hint}")
