"""What a split with objects holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metaformer.data.detection import DetectionFolder
from metaformer.data.survey import Seen


@dataclass(frozen=True)
class ObjectCount:
    """How much there is of a class."""

    objects: int
    """Crowds not counted."""
    pictures: int
    """How many pictures show it."""


@dataclass(frozen=True)
class DetectionSummary:
    """Pictures with objects of one split."""

    name: str
    pictures: int
    unreadable: int
    """Pictures that cannot be used."""
    empty: int
    """Pictures without object."""
    objects: int
    crowds: int
    """How many of the objects are crowds, or too hard to tell."""
    outlined: int
    """How many of the objects have an outline."""
    per_class: dict[str, ObjectCount]
    narrowest: tuple[int, int]
    """Width and height of the picture with the fewest pixels."""
    median: tuple[int, int]
    widest: tuple[int, int]
    """Width and height of the picture with the most pixels."""

    def text(self) -> str:
        """Give a line."""
        sizes = " to ".join(f"{w}x{h}" for w, h in dict.fromkeys((self.narrowest, self.widest)))
        bad = f" ({self.unreadable:,} unusable)" if self.unreadable else ""
        shown = sum(one.objects > 0 for one in self.per_class.values())
        crowds = f", {self.crowds:,} crowds" if self.crowds else ""
        return (
            f"{self.name}: {self.pictures:,} pictures{bad}, {self.empty:,} of them empty, with "
            f"{self.objects:,} objects ({self.outlined:,} with masks{crowds}) of {shown:,} of "
            f"{len(self.per_class):,} classes; sizes {sizes}, median {self.median[0]}x{self.median[1]}"
        )


def summarise(name: str, folder: DetectionFolder, seen: Sequence[Seen]) -> DetectionSummary:
    """Sum up what was seen of a split."""
    table = folder.objects
    single = ~table.crowd
    objects = np.bincount(table.labels[single], minlength=len(folder.classes)).tolist()
    pairs = np.unique(np.stack([table.labels[single], table.pictures[single]]), axis=1)
    pictures = np.bincount(pairs[0], minlength=len(folder.classes)).tolist()
    good = [(one.width, one.height) for one in seen if not one.trouble]
    sizes = sorted(good, key=lambda size: size[0] * size[1]) or [(0, 0)]
    bad = [one.trouble or folder.misfit(one.index, (one.width, one.height)) for one in seen]
    return DetectionSummary(
        name,
        len(seen),
        sum(map(bool, bad)),
        len(folder) - len(np.unique(table.pictures)),
        len(table),
        int(table.crowd.sum()),
        int(table.outlined.sum()),
        {label: ObjectCount(objects[place], pictures[place]) for place, label in enumerate(folder.classes)},
        sizes[0],
        sizes[len(sizes) // 2],
        sizes[-1],
    )
