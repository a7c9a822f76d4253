"""Average precision, F1 and the thresholds that maximize it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from metaformer.errors import ConfigError
from metaformer.serialize import Probability, decode

DEFAULT_THRESHOLD = 0.5


class Counts(NamedTuple):
    """True positives, false positives and false negatives of each class, (K,) float64."""

    tp: Tensor
    fp: Tensor
    fn: Tensor

    def f1(self) -> Tensor:
        """F1 = 2 tp / (2 tp + fp + fn) of each class, (K,); 0 for one neither present nor predicted."""
        return 2 * self.tp / (2 * self.tp + self.fp + self.fn).clamp(min=1)


def count(scores: Tensor, labels: Tensor, thresholds: Tensor) -> Counts:
    """Counts of predictions.

    Args:
        scores: (N, K) probabilities.
        labels: (N, K) of 0 and 1.
        thresholds: (K,) a class is predicted where its score is at least this.
    """
    predicted, there = scores >= thresholds, labels > 0.5
    tp, fp, fn = predicted & there, predicted & ~there, ~predicted & there
    return Counts(*(part.sum(dim=0).double() for part in (tp, fp, fn)))


def average_precision(scores: Tensor, labels: Tensor) -> Tensor:
    """Average precision of each class, (K,) float64; NaN for a class that no image has.

    AP = sum over distinct scores s, from the highest, of (R(s) - R(previous s)) P(s), where P and R are
    precision and recall of "score >= s": the area under the precision-recall steps, not interpolated.

    Args:
        scores: (N, K).
        labels: (N, K) of 0 and 1.
    """
    result = torch.full((scores.shape[1],), torch.nan, dtype=torch.float64)
    for k in range(scores.shape[1]):
        ranked, order = scores[:, k].sort(descending=True)
        tp = (labels[order, k] > 0.5).double().cumsum(0)
        last = _last_of_ties(ranked)
        tp, rank = tp[last], torch.arange(1, len(ranked) + 1, dtype=torch.float64)[last]
        if len(tp) and tp[-1] > 0:
            gained = torch.diff(tp, prepend=tp.new_zeros(1))
            result[k] = (gained * tp / rank).sum() / tp[-1]
    return result


def best_thresholds(scores: Tensor, labels: Tensor) -> Tensor:
    """The threshold of each class with the highest F1, (K,) float64; the default for a class without images.

    A threshold lies halfway between the lowest score that is predicted and the next one below, so that
    rounding does not move an image across it.
    """
    result = torch.full((scores.shape[1],), DEFAULT_THRESHOLD, dtype=torch.float64)
    for k in range(scores.shape[1]):
        ranked, order = scores[:, k].double().sort(descending=True)
        tp = (labels[order, k] > 0.5).double().cumsum(0)
        if not len(tp) or tp[-1] == 0:
            continue
        last = _last_of_ties(ranked)
        rank = torch.arange(1, len(ranked) + 1, dtype=torch.float64)
        f1 = 2 * tp[last] / (rank[last] + tp[-1])
        place = int(f1.argmax())
        cut = int(last[place])
        below = float(ranked[cut + 1]) if cut + 1 < len(ranked) else 0.0
        result[k] = (float(ranked[cut]) + below) / 2
    return result


def _last_of_ties(ranked: Tensor) -> Tensor:
    """Indices of the last of equal values in a sorted vector."""
    ends = torch.ones(len(ranked), dtype=torch.bool)
    ends[:-1] = ranked[1:] != ranked[:-1]
    return ends.nonzero().flatten()


def read_thresholds(values: Any, count: int) -> tuple[float, ...]:
    """Thresholds from a file's plain values.

    Raises:
        ConfigError: anything but `count` numbers of 0 … 1.
    """
    numbers: tuple[float, ...] = decode(tuple[Probability, ...], values, "thresholds")
    if len(numbers) != count:
        raise ConfigError(f"thresholds: must be {count} numbers of 0 … 1, one for each class")
    return numbers
