"""`metaformer data check`: all that is wrong with a data set, told at once and before a training finds it."""

import logging
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that one should know."""

    grade: Literal["error", "warning"]
    kind: str
    """Errors: `layout`, `damaged`, `one class`, `unreadable`, `label map`, and of objects `image`, `size`,
    `id`, `category`, `box`, `segmentation`, `annotation`; warnings: `contradiction` (one image, two
    classes, label maps or lists of objects), `leak` (an image to validate on that is trained on), `uneven`,
    `absent` (a class of which there is no pixel or object; an error where that is so of all), `unlabeled`,
    `tiny`, `animated`, `ignored`."""
    text: str


@dataclass(frozen=True)
class SplitSummary:
    """What a split holds."""

    name: str
    images: int
    unreadable: int
    per_class: dict[str, int]
    narrowest: tuple[int, int]
    """Width and height of the image with the fewest pixels."""
    median: tuple[int, int]
    widest: tuple[int, int]
    """Width and height of the image with the most pixels."""

    def text(self) -> str:
        """Give a line."""
        counts = sorted(self.per_class.values()) or [0]
        sizes = " to ".join(f"{w}x{h}" for w, h in dict.fromkeys((self.narrowest, self.widest)))
        bad = f" ({self.unreadable:,} unreadable)" if self.unreadable else ""
        spread = f"{counts[0]:,} to {counts[-1]:,} (median {statistics.median_high(counts):,})"
        return (
            f"{self.name}: {self.images:,} images{bad} in {len(self.per_class):,} classes of {spread}; "
            f"sizes {sizes}, median {self.median[0]}x{self.median[1]}"
        )


class Summary(Protocol):
    """What a split of a data set holds, as a dataclass."""

    def text(self) -> str: ...


@dataclass(frozen=True)
class CheckReport:
    """What a check found; `ok` where there is no error."""

    root: str
    splits: tuple[Summary, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether a training would run."""
        return not self.count("error")

    def count(self, grade: str) -> int:
        """Count the findings of a grade."""
        return sum(finding.grade == grade for finding in self.findings)

    def text(self, limit: int = 20) -> str:
        """Give lines for people, errors first, at most `limit` findings of a kind."""
        lines = [split.text() for split in self.splits]
        for grade in ("error", "warning"):
            kinds = dict.fromkeys(finding.kind for finding in self.findings if finding.grade == grade)
            for kind in kinds:
                found = [f for f in self.findings if (f.grade, f.kind) == (grade, kind)]
                lines += [f"{grade}: {finding.text}" for finding in found[:limit]]
                if len(found) > limit:
                    lines.append(
                        f"{grade}: … and {len(found) - limit:,} more such ({kind}); --json lists all"
                    )
        lines.append(f"{self.root}: {self.count('error'):,} error(s), {self.count('warning'):,} warning(s)")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Give plain values."""
        return {**asdict(self), "ok": self.ok}


@contextmanager
def quiet() -> Iterator[None]:
    """Let the report alone speak of what the readers would log."""
    logger = logging.getLogger("metaformer.data")
    kept = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(kept)
