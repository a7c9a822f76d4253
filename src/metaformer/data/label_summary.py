"""What a split with label maps holds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from metaformer.data.survey import Seen


@dataclass(frozen=True)
class ClassSummary:
    """How much there is of a class."""

    pixels: int
    pictures: int
    """How many pictures show it."""


@dataclass(frozen=True)
class LabelSummary:
    """Pictures with label maps of one split."""

    name: str
    pictures: int
    unreadable: int
    """Pictures that cannot be used, or whose label map cannot."""
    per_class: dict[str, ClassSummary]
    ignored: float
    """Share of the pixels that do not count."""
    narrowest: tuple[int, int]
    """Width and height of the picture with the fewest pixels."""
    median: tuple[int, int]
    widest: tuple[int, int]
    """Width and height of the picture with the most pixels."""

    def text(self) -> str:
        """Give a line."""
        sizes = " to ".join(f"{w}x{h}" for w, h in dict.fromkeys((self.narrowest, self.widest)))
        bad = f" ({self.unreadable:,} unusable)" if self.unreadable else ""
        shown = sum(one.pictures > 0 for one in self.per_class.values())
        return (
            f"{self.name}: {self.pictures:,} pictures{bad} with label maps of {shown:,} of "
            f"{len(self.per_class):,} classes; {100 * self.ignored:.1f} % of the pixels ignored; "
            f"sizes {sizes}, median {self.median[0]}x{self.median[1]}"
        )


def summarise(name: str, classes: Sequence[str], seen: Sequence[Seen]) -> LabelSummary:
    """Sum up what was seen of a split."""
    pixels: Counter[int] = Counter()
    pictures: Counter[int] = Counter()
    ignored = 0
    for one in seen:
        if one.labels is not None:
            pixels.update(one.labels.pixels)
            pictures.update(one.labels.pixels.keys())
            ignored += one.labels.ignored
    good = [(one.width, one.height) for one in seen if not one.trouble]
    sizes = sorted(good, key=lambda size: size[0] * size[1]) or [(0, 0)]
    return LabelSummary(
        name,
        len(seen),
        sum(bool(one.trouble or one.label_trouble) for one in seen),
        {label: ClassSummary(pixels[place], pictures[place]) for place, label in enumerate(classes)},
        ignored / max(1, ignored + pixels.total()),
        sizes[0],
        sizes[len(sizes) // 2],
        sizes[-1],
    )
