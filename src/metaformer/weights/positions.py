"""Where stages and levels stand in other software's lists."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

BACKBONE = "backbone."
"""What stands before the backbone's names in a network that has one among its parts."""
KINDS = ("net", "down", "pos", "last", "extra")
"""Placeholders of positions."""
FIRST_EXTRA = 6
"""The number of a pyramid's first output beyond its levels, P6."""


@dataclass(frozen=True)
class Positions:
    """Which positions of the originals' one list hold which stage's blocks, downsampling and embedding.

    `levels` is how many levels a pyramid has, behind which its further outputs are counted on.
    """

    blocks: tuple[int, ...]
    levels: int = 0
    down: Mapping[int, int] = field(default_factory=dict)
    pos: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of_foreign(cls, keys: Iterable[str]) -> "Positions":
        """Read it from keys such as `network.0.1.norm1.weight`: lists of blocks have a number next."""
        entries = [key.removeprefix(BACKBONE).split(".") for key in keys]
        blocks = {
            int(e[1])
            for e in entries
            if e[0] == "network" and len(e) > 2 and e[1].isdecimal() and e[2].isdecimal()
        }
        return cls(tuple(sorted(blocks)), _numbers(entries, "neck", "lateral_convs"))

    @classmethod
    def of_ours(cls, keys: Iterable[str]) -> "Positions":
        """Lay our stages out as the originals' list does."""
        names = [key.removeprefix(BACKBONE) for key in keys]
        parts = {tuple(name.split(".")[1:3]) for name in names if name.startswith("stages.")}
        blocks, down, pos, place = [], {}, {}, 0
        for stage in range(1 + max((int(number) for number, _ in parts), default=-1)):
            if (str(stage), "downsample") in parts:
                down[stage], place = place, place + 1
            if (str(stage), "pos_embed") in parts:
                pos[stage], place = place, place + 1
            blocks.append(place)
            place += 1
        levels = _numbers((name.split(".") for name in names), "neck", "laterals")
        return cls(tuple(blocks), levels, down, pos)

    def stage(self, kind: str, position: int) -> int:
        """The stage that an entry of the list belongs to: as many lists of blocks stand before it."""
        if kind == "extra":
            return FIRST_EXTRA + position - self.levels
        return sum(other < position for other in self.blocks)

    def fits(self, kind: str, position: int) -> bool:
        """Tell whether a placeholder may stand for this position."""
        if kind == "extra":
            return position >= self.levels
        if kind == "last":
            return position == max(self.blocks, default=-1)
        return (position in self.blocks) == (kind == "net")

    def position(self, kind: str, stage: int) -> int | None:
        """The inverse of `stage`, for each kind of entry."""
        if kind == "last":
            return max(self.blocks, default=None)
        if kind == "net":
            return self.blocks[stage] if stage < len(self.blocks) else None
        if kind == "extra":
            return self.levels + stage - FIRST_EXTRA
        return (self.down if kind == "down" else self.pos).get(stage)


def _numbers(entries: Iterable[list[str]], *before: str) -> int:
    """How many different parts stand behind these first parts of names."""
    return len({tuple(e[: len(before) + 1]) for e in entries if tuple(e[: len(before)]) == before})
