"""What a detector's checkpoint says of its classes beside their names."""

from typing import Any, NamedTuple

from metaformer.data.class_lists import Palette
from metaformer.errors import ConfigError
from metaformer.serialize import Probability, decode


class DetectionMetadata(NamedTuple):
    """Colors, ids and the score of a detector's classes."""

    palette: Palette
    """A color for each."""
    category_ids: tuple[int, ...]
    """The id of each in COCO's files."""
    score: float | None = None
    """Score from which objects are shown, chosen on validation data; None where none was."""


def read_ids(values: Any, count: int) -> tuple[int, ...]:
    """COCO's category ids from a file's plain values.

    Raises:
        ConfigError: anything but `count` different integers.
    """
    ids: tuple[int, ...] = decode(tuple[int, ...], values, "category_ids")
    if len(ids) != count or len(set(ids)) != count:
        raise ConfigError(f"category_ids: must be {count:,} different integers, one for each class")
    return ids


def read_score(value: Any) -> float | None:
    """A score threshold from a file's plain values; None where there is none.

    Raises:
        ConfigError: anything else but a number of 0 … 1.
    """
    score: float | None = decode(Probability | None, value, "score")
    return score
