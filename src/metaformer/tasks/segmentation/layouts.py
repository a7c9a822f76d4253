"""How published segmentation data sets lie on disk, and which number in their label maps is which class."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from metaformer.errors import DataError, UnknownName

_CITYSCAPES: Final = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
"""The label ids that count, in the order of their train ids; ids go up to 33."""
_COCO_MISSING: Final = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Of COCO's 182 categories, counted from 0, those that no image was annotated with."""


@dataclass(frozen=True)
class Numbers:
    """The numbers in label maps whose names end in a certain way."""

    ending: str
    """What follows the image's name, before `.png`."""
    classes: tuple[int, ...] | None = None
    """The number of each class; None for 0, 1, 2 and so on."""
    ignored: tuple[int, ...] = ()
    """Numbers of pixels that do not count, beside 255."""


@dataclass(frozen=True)
class Layout:
    """Where images and label maps of a split lie, below the root."""

    name: str
    signs: tuple[tuple[str, ...], ...]
    """It is recognized where all of any of these are there."""
    images: str
    """Folder of images, in which `{split}` is replaced."""
    labels: tuple[str, ...]
    """Folders of label maps; those that exist are looked through in this order."""
    home: tuple[str, ...] = ()
    """Folders below the root that the data set may lie in, as its archive unpacks."""
    splits: Mapping[str, str] = field(default_factory=dict)
    """What this layout calls `train` and `val`, where it calls them otherwise."""
    ending: str = ""
    """What the names of images end in, before the extension."""
    numbers: tuple[Numbers, ...] = (Numbers(""),)
    """Kinds of label maps; the first of which there is any is taken."""
    listing: str | None = None
    """Text file with the names of a split's images."""
    names: str | None = None
    """File that names the classes."""
    published: str | None = None
    """Class list that holds where there is no such file."""
    zero: bool | None = None
    """Whether 0 is no class, when not said; None where nobody can say so."""


LAYOUTS: Final = {
    layout.name: layout
    for layout in (
        Layout(
            "folders",
            signs=(("images", "classes.txt"),),
            images="images/{split}",
            labels=("annotations/{split}", "labels/{split}", "masks/{split}"),
            names="classes.txt",
            zero=False,
        ),
        Layout(
            "ade20k",
            signs=(("images/training", "annotations"), ("images/validation", "annotations")),
            images="images/{split}",
            labels=("annotations/{split}",),
            home=("ADEChallengeData2016",),
            splits={"train": "training", "val": "validation"},
            names="objectInfo150.txt",
            published="ade20k",
            zero=True,
        ),
        Layout(
            "voc",
            signs=(("JPEGImages", "SegmentationClass"),),
            images="JPEGImages",
            labels=("SegmentationClass", "SegmentationClassAug"),
            home=("VOC2012", "VOCdevkit/VOC2012"),
            listing="ImageSets/Segmentation/{split}.txt",
            published="voc",
        ),
        Layout(
            "cityscapes",
            signs=(("leftImg8bit", "gtFine"),),
            images="leftImg8bit/{split}",
            labels=("gtFine/{split}",),
            ending="_leftImg8bit",
            numbers=(
                Numbers("_gtFine_labelIds", _CITYSCAPES, tuple(sorted(set(range(34)) - set(_CITYSCAPES)))),
                Numbers("_gtFine_labelTrainIds"),
            ),
            published="cityscapes",
        ),
        Layout(
            "coco_stuff",
            signs=(("images/train2017",), ("images/val2017",)),
            images="images/{split}",
            labels=("annotations/{split}", "stuffthingmaps/{split}"),
            splits={"train": "train2017", "val": "val2017"},
            numbers=(
                Numbers("_labelTrainIds"),
                Numbers("", tuple(sorted(set(range(182)) - set(_COCO_MISSING)))),
            ),
            published="coco_stuff",
        ),
    )
}
_PLAIN_LABELS: Final = ("annotations", "labels", "masks")


def find_layout(root: str | Path) -> tuple[Layout, Path] | None:
    """Recognize a data set with label maps; gives its layout and the folder that has it, or None."""
    root = Path(root).expanduser()
    for layout in LAYOUTS.values():
        for home in ("", *layout.home):
            if any(all((root / home / part).exists() for part in sign) for sign in layout.signs):
                return layout, root / home
    if (root / "images").is_dir() and any((root / name).is_dir() for name in _PLAIN_LABELS):
        return LAYOUTS["folders"], root
    return None


def has_label_maps(root: str | Path) -> bool:
    """Tell whether a layout is recognized, and has any label map where its label maps lie."""
    found = find_layout(root)
    if found is None:
        return False
    layout, home = found
    folders = (folder for name in layout.labels for folder in home.glob(name.format(split="*")))
    return any(folder.is_dir() and next(folder.rglob("*.png"), None) is not None for folder in folders)


def choose_layout(root: str | Path, name: str) -> tuple[Layout, Path]:
    """Give the layout of this name, or with `auto` the one that is recognized, and the folder that has it.

    Raises:
        DataError: none is recognized.
        UnknownName: there is no such layout.
    """
    root = Path(root).expanduser()
    if name == "auto":
        found = find_layout(root)
        if found is None:
            raise DataError(f"{root}: {_what_there_is(root)}; say segment.layout ({', '.join(LAYOUTS)})")
        return found
    if name not in LAYOUTS:
        raise UnknownName("layout", name, [*LAYOUTS, "auto"])
    layout = LAYOUTS[name]
    first = layout.images.split("/")[0]
    return layout, next((root / home for home in layout.home if (root / home / first).is_dir()), root)


def _what_there_is(root: Path) -> str:
    if not root.is_dir():
        return "is a file, not a folder" if root.is_file() else "no such folder"
    there = ", ".join(sorted(entry.name for entry in root.iterdir())[:10]) or "nothing"
    return f"no layout of images and label maps that is known; it holds {there}"
