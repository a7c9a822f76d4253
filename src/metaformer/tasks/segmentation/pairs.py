"""Which image belongs to which label map: found by their names."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from metaformer.data.folder import EXTENSIONS, files_below
from metaformer.errors import DataError
from metaformer.tasks.segmentation.layouts import Layout, Numbers


@dataclass(frozen=True)
class Pairs:
    """The files of a split."""

    split: str
    """As the layout calls it."""
    root: Path
    folder: Path
    """Where the images lie."""
    images: tuple[str, ...]
    """Below the root, in order of their names."""
    label_maps: tuple[str, ...]
    """The label map of each, below the root."""
    numbers: Numbers
    """What the label maps hold."""
    faults: tuple[str, ...]
    """What must be mended, such as images without label map; these images are left out above."""
    unused: tuple[str, ...]
    """What is there and not used."""


def find_pairs(layout: Layout, home: Path, split: str) -> Pairs:
    """Look for the images of a split and their label maps.

    Raises:
        DataError: there are no images, or no label maps at all.
    """
    split = layout.splits.get(split, split)
    folder = home / layout.images.format(split=split)
    faults: list[DataError] = []
    images, unused = _images(layout, home, folder, faults)
    numbers, label_maps = _label_maps(layout, home, split, faults)
    if layout.listing is not None:
        wanted = listed_names(home / layout.listing.format(split=split))
        _tell_absent(wanted, images, folder, faults)
        images = {stem: images[stem] for stem in wanted if stem in images}
    else:
        over = [name for stem, name in label_maps.items() if stem not in images]
        unused += [f"{home / name}: label map without image" for name in over]
    if not images:
        raise DataError(f"{folder}: no images")
    expected = home / layout.labels[0].format(split=split)
    for stem in images:
        if stem not in label_maps:
            missing = expected / f"{stem}{numbers.ending}.png"
            faults.append(DataError(f"{home / images[stem]}: no label map {missing}"))
    stems = sorted(images.keys() & label_maps.keys())
    return Pairs(
        split,
        home,
        folder,
        tuple(images[stem] for stem in stems),
        tuple(label_maps[stem] for stem in stems),
        numbers,
        tuple(str(fault) for fault in faults),
        tuple(unused),
    )


def _images(
    layout: Layout, home: Path, folder: Path, faults: list[DataError]
) -> tuple[dict[str, str], list[str]]:
    """Images by their names without ending and extension; and what is no image."""
    _need(home, folder)
    images: dict[str, str] = {}
    others: Counter[str] = Counter()
    for stem, extension, name in _below(home, folder, faults):
        if extension not in EXTENSIONS or not stem.endswith(layout.ending):
            others[extension or "without extension"] += 1
            continue
        stem = stem.removesuffix(layout.ending)
        if stem in images:
            same = f"{home / name}: has the name of {home / images[stem]}, so both would have one label map"
            faults.append(DataError(same))
        else:
            images[stem] = name
    return images, [f"{folder}: {many:,} {kind} file(s) are not used" for kind, many in others.items()]


def _label_maps(
    layout: Layout, home: Path, split: str, faults: list[DataError]
) -> tuple[Numbers, dict[str, str]]:
    """Label maps by the names of their images, and what numbers they hold."""
    folders = [home / name.format(split=split) for name in layout.labels]
    there = [folder for folder in folders if folder.is_dir()]
    if not there:
        names = " or ".join(str(folder) for folder in folders)
        raise DataError(f"{home}: no folder of label maps: {names}")
    found: dict[str, str] = {}
    strange: Counter[str] = Counter()
    for folder in there:
        for stem, extension, name in _below(home, folder, faults):
            if extension == ".png":
                found.setdefault(stem, name)
            else:
                strange[extension or "without extension"] += 1
    for numbers in layout.numbers:
        ending = numbers.ending
        if maps := {stem.removesuffix(ending): name for stem, name in found.items() if stem.endswith(ending)}:
            return numbers, maps
    endings = " or ".join(f"*{numbers.ending}.png" for numbers in layout.numbers)
    instead = ", ".join(f"{many:,} {kind}" for kind, many in sorted(strange.items()))
    raise DataError(
        f"{there[0]}: no label maps {endings}" + (f"; it holds {instead} file(s)" if instead else "")
    )


def _below(home: Path, folder: Path, faults: list[DataError]) -> Iterable[tuple[str, str, str]]:
    """Name without extension below the folder, extension, and name below the data set, of each file."""
    prefix = folder.relative_to(home).as_posix()
    for name in files_below(folder, faults.append):
        stem, extension = os.path.splitext(name)
        yield stem, extension.lower(), f"{prefix}/{name}"


def _need(home: Path, folder: Path) -> None:
    if not home.is_dir():
        raise DataError(f"{home}: {'is a file, not a folder' if home.is_file() else 'no such folder'}")
    if not folder.is_dir():
        above = folder.parent
        there = sorted(entry.name for entry in above.iterdir() if entry.is_dir()) if above.is_dir() else []
        holds = f"; {above} holds {', '.join(there[:10])}" if there else ""
        raise DataError(f"{folder}: no such folder{holds}")


def listed_names(path: Path) -> list[str]:
    """Read names of a split's images: the first word of each line.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); it must name the split's images") from error
    return list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))


def _tell_absent(wanted: list[str], images: dict[str, str], folder: Path, faults: list[DataError]) -> None:
    faults += [DataError(f"{folder / stem}.jpg: no such image") for stem in wanted if stem not in images]
