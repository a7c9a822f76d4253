"""Divide a data set without splits into training and held-out images."""

import hashlib
import logging
import os
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, Self, TypeVar
from zlib import crc32

from metaformer.data.folder import ImageFolder
from metaformer.errors import ConfigError, DataError, OutputError
from metaformer.report.readable import Readable
from metaformer.storage import atomic_folder

SPLITS: Final = ("train", "val", "test")
"""Splits that data sets are written in; the last is for those that have it."""
PARTS = ("training", "validation")
"""What the parts of a divided split are for."""
FLAT_SPLITS: Final = ("train", "val", "all")
"""Splits of a data set in one folder."""
_log = logging.getLogger(__name__)


def select_split(names: Sequence[str], split: str, root: Path, whole: bool = False) -> list[str]:
    """Those of the images in the one folder of a data set that are of a split, in their order; or all.

    The fifth of the images whose names have the smallest checksums, at least one, is `val`, the others are
    `train`: the same on every machine, and hardly another if images are added. `all` is everything.

    Raises:
        DataError: another split.
    """
    if split not in (*FLAT_SPLITS, "."):
        raise DataError(f"{root}: no split {split!r}: without folders of splits there are train, val and all")
    if whole or split == "all":
        return list(names)
    _log.warning("%s: no splits: a fifth of the images, chosen by name, validates", root)
    ranked = sorted(names, key=lambda name: (crc32(name.encode("utf-8", "surrogateescape")), name))
    val = set(ranked[: max(1, len(names) // 5)])
    return [name for name in names if (name in val) == (split == "val")]


def hold_out(
    paths: Sequence[str], labels: Sequence[int], fraction: float, seed: int = 0, group: str | None = None
) -> list[bool]:
    """Choose the images that are held out: of each class the same share, by seed and path alone.

    Args:
        paths: relative paths.
        labels: the class of each.
        fraction: share that is held out; of each class of two or more images at least one is, and one is not.
        seed: what they are chosen by.
        group: a regular expression; images whose paths it matches alike, in its first group if it has one,
            stay together, such as `(patient[0-9]+)`. Classes then give their share as well as groups allow.

    Raises:
        ConfigError: a fraction out of range, or an expression that is none.
        DataError: a path that the expression does not match.
    """
    if not 0 < fraction < 1:
        raise ConfigError(f"val_fraction is {fraction}: it must be above 0 and below 1")
    if group is not None:
        return _by_group(groups_of(paths, group), labels, fraction, seed)
    members: dict[int, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        members[label].append(index)
    held = [False] * len(paths)
    for indices in members.values():
        indices.sort(key=lambda index: _rank(paths[index], seed))
        for index in indices[: _share(len(indices), fraction)]:
            held[index] = True
    return held


class Divisible(Protocol):
    """Images of a split, of which a part can be taken."""

    @property
    def folder(self) -> Path:
        """Where the images lie."""

    def __len__(self) -> int: ...

    def path(self, index: int) -> Path: ...

    def subset(self, wanted: Sequence[bool]) -> Self:
        """The images that are wanted."""


D = TypeVar("D", bound=Divisible)


def divide(
    whole: D, labels: Sequence[int], fraction: float, seed: int, group: str | None = None
) -> tuple[D, D]:
    """Training and held-out part of a split; see `hold_out`.

    Raises:
        ConfigError: a fraction out of range, or an expression that is none.
        DataError: a path that the expression does not match, or a part without images.
    """
    held = hold_out(_relative(whole), labels, fraction, seed, group)
    parts = whole.subset([not one for one in held]), whole.subset(held)
    for part, name in zip(parts, PARTS, strict=True):
        if not len(part):
            few = "images or groups" if group else "images"
            raise DataError(f"{whole.folder}: no images for {name}: it has too few {few}")
    return parts


def digest(part: Divisible) -> str:
    """Hash of which images a part holds, to tell whether another division gives the same."""
    return hashlib.sha256("\n".join(sorted(_relative(part))).encode(errors="surrogateescape")).hexdigest()


def check_division(held_out: Divisible, expected: str) -> None:
    """Check that a division holds out what it did before.

    Args:
        held_out: the part that is held out now.
        expected: `digest` of the part that was.

    Raises:
        DataError: it holds out other images.
    """
    if digest(held_out) != expected:
        raise DataError(
            f"{held_out.folder}: has other images than when the run divided it (data.val_fraction), so that "
            "some it was trained on would be held out: restore the data set, or name a split to evaluate on"
        )


def rarest_labels(images: Sequence[int], labels: Sequence[int], count: int) -> list[int]:
    """The rarest label of each image, by which `hold_out` divides images of several; -1 for none.

    Args:
        images: the image of each label.
        labels: the labels.
        count: number of images.
    """
    total = Counter(labels)
    rarest = [-1] * count
    for image, label in zip(images, labels, strict=True):
        one = rarest[image]
        if one < 0 or (total[label], label) < (total[one], one):
            rarest[image] = label
    return rarest


def open_divided(
    root: str | Path, split: str, fraction: float, seed: int, group: str | None = None
) -> tuple[ImageFolder, ImageFolder]:
    """Training and held-out part of an image folder: of a split, or of class folders without one.

    Raises:
        ConfigError: a fraction out of range, or an expression that is none.
        DataError: another layout, or a class without an image in one of the parts.
    """
    has_split = (Path(root).expanduser() / split).is_dir()
    whole = ImageFolder(root, split if has_split else "")
    parts = divide(whole, whole.labels, fraction, seed, group)
    for part, name in zip(parts, PARTS, strict=True):
        if missing := sorted(set(range(len(whole.classes))) - set(part.labels)):
            few, strange = "images or groups" if group else "images", whole.classes[missing[0]]
            raise DataError(f"{whole.folder}: no images of {strange!r} for {name}: it has too few {few}")
    return parts


@dataclass(frozen=True, repr=False)
class Division(Readable):
    """A data set that was written in splits."""

    root: Path
    counts: Mapping[str, Mapping[str, int]]
    """Images by split and class."""

    @classmethod
    def of(
        cls,
        root: Path,
        classes: Sequence[str],
        labels: Sequence[int],
        place: Sequence[str],
        splits: Sequence[str] = SPLITS,
    ) -> Self:
        """Count the images.

        Args:
            root: where they lie.
            classes: class names.
            labels: the class of each image.
            place: the split of each image.
            splits: all splits.
        """
        counts = {split: dict.fromkeys(classes, 0) for split in splits}
        for label, split in zip(labels, place, strict=True):
            counts[split][classes[label]] += 1
        return cls(root, counts)

    def text(self) -> str:
        """A line for each split."""
        lines = []
        for split, classes in self.counts.items():
            least, most = min(classes.values()), max(classes.values())
            lines.append(
                f"{self.root / split}: {sum(classes.values())} images, {least} to {most} of each class"
            )
        return "\n".join(lines)


def write_splits(
    root: str | Path,
    out: str | Path,
    *,
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    seed: int = 0,
    group: str | None = None,
) -> Division:
    """Write a folder of class folders again as `train`, `val` and perhaps `test`.

    Files are hard links to the images where the disk allows it, else copies.

    Args:
        root: the class folders.
        out: where to: a new or empty folder, not inside `root`.
        val_fraction: share of the images for validation.
        test_fraction: share of the images for a test; 0 for none.
        seed: images are chosen by it and their paths alone.
        group: a regular expression; images whose paths it matches alike stay in one split, such as
            `(patient[0-9]+)`.

    Raises:
        ConfigError: a fraction out of range, or an expression that is none.
        DataError: another layout, or a class without an image in one of the splits.
        OutputError: the folder cannot be written, or is not empty.
    """
    whole, target = ImageFolder(root, ""), Path(out).expanduser()
    if target.resolve().is_relative_to(whole.folder.resolve()):
        raise OutputError(f"{target}: lies in the data set itself; choose another folder")
    paths = _relative(whole)
    place = assign_splits(paths, whole.labels, val_fraction, test_fraction, seed, group)
    splits = SPLITS if test_fraction else SPLITS[:2]
    division = Division.of(target, whole.classes, whole.labels, place, splits)
    for split, classes in division.counts.items():
        if missing := [name for name, count in classes.items() if not count]:
            few = "images or groups" if group else "images"
            raise DataError(f"{whole.folder}: no image of {missing[0]!r} in {split}: it has too few {few}")
    with atomic_folder(target) as folder:
        for index, (path, split) in enumerate(zip(paths, place, strict=True)):
            file = folder / split / path
            file.parent.mkdir(parents=True, exist_ok=True)
            source = whole.path(index).resolve()  # a hard link to a link would point beside it
            try:
                os.link(source, file)
            except OSError:  # another disk, or one without links
                shutil.copyfile(source, file)
    return division


def assign_splits(
    paths: Sequence[str],
    labels: Sequence[int],
    val_fraction: float,
    test_fraction: float,
    seed: int,
    group: str | None = None,
) -> list[str]:
    """Split of each image, `train`, `val` or `test`; see `hold_out`.

    Args:
        paths: relative paths.
        labels: the class of each.
        val_fraction: share of the images for validation.
        test_fraction: share of the images for a test; 0 for none.
        seed: what they are chosen by.
        group: a regular expression; images whose paths it matches alike stay in one split.

    Raises:
        ConfigError: a fraction out of range, or an expression that is none.
        DataError: a path that the expression does not match.
    """
    place, left = ["train"] * len(paths), list(range(len(paths)))
    for name, share in (("test", test_fraction), ("val", val_fraction / (1 - min(test_fraction, 0.999)))):
        if name == "test" and not share:
            continue
        chosen = hold_out([paths[i] for i in left], [labels[i] for i in left], share, seed, group)
        for index, held in zip(left, chosen, strict=True):
            place[index] = name if held else place[index]
        left = [index for index, held in zip(left, chosen, strict=True) if not held]
    return place


def _relative(whole: Divisible) -> list[str]:
    """Paths by which images are chosen: below the folder, or as they are where they lie elsewhere."""
    paths = (whole.path(index) for index in range(len(whole)))
    folder = whole.folder
    return [(path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix() for path in paths]


def _share(count: int, fraction: float) -> int:
    return min(max(1, round(count * fraction)), count - 1)


def _rank(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


def groups_of(paths: Sequence[str], group: str) -> list[str]:
    """What a regular expression matches in each path: its first group, if it has one.

    Raises:
        ConfigError: an expression that is none.
        DataError: a path that it does not match.
    """
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise ConfigError(f"data.group: {group!r} is no regular expression ({error})") from error
    names = []
    for path in paths:
        found = pattern.search(path)
        if found is None:
            raise DataError(f"{path}: data.group {group!r} does not match it: write one that does")
        names.append(found[1] if pattern.groups and found[1] is not None else found[0])
    return names


def _by_group(groups: Sequence[str], labels: Sequence[int], fraction: float, seed: int) -> list[bool]:
    """Hold out groups, the larger first, where that brings the classes' shares nearer to the fraction."""
    content: dict[str, Counter[int]] = defaultdict(Counter)
    for name, label in zip(groups, labels, strict=True):
        content[name][label] += 1
    total = Counter(labels)
    missing = {label: count * fraction for label, count in total.items()}
    held = set()
    for name in sorted(content, key=lambda one: (-content[one].total(), _rank(one, seed))):
        own = content[name]
        gain = sum(abs(missing[label]) - abs(missing[label] - count) for label, count in own.items())
        if gain > 0:
            held.add(name)
            for label, count in own.items():
                missing[label] -= count
    return [name in held for name in groups]
