"""Which of many boxes to keep."""

from math import log

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

SHIFTED = 10_000
"""Up to so many boxes, all classes are compared at once, each shifted out of the others' way."""


def top_level(logits: Tensor, most: int, threshold: float | None = None) -> tuple[Tensor, Tensor]:
    """Choose the most probable among logits of any shape.

    Args:
        logits: of independent probabilities.
        most: how many at most.
        threshold: probability that they exceed; None for all.

    Returns:
        Probabilities (N,) in float32, highest first and equal ones in their order, and places in the
        flattened logits (N,).
    """
    flat = logits.flatten()
    if threshold is None:
        scores, places = flat.float().sigmoid(), None
    else:
        # Few of millions are above: the logits are compared, loosely, then the probabilities of those left.
        bound = log(threshold / (1 - threshold)) - 0.1 if 0 < threshold < 1 else float("-inf")
        places = (flat > bound).nonzero()[:, 0]
        scores = flat[places].float().sigmoid()
        above = scores > threshold
        scores, places = scores[above], places[above]
    order = top(scores, most)
    return scores[order], order if places is None else places[order]


def top(scores: Tensor, most: int) -> Tensor:
    """Numbers of the highest scores, highest first; of equal ones the first come first."""
    if len(scores) <= most:
        return scores.argsort(descending=True, stable=True)
    least = scores.topk(most, sorted=False).values.min()
    candidates = (scores >= least).nonzero()[:, 0]
    return candidates[scores[candidates].argsort(descending=True, stable=True)[:most]]


def keep(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, most: int) -> Tensor:
    """Numbers of the best boxes, best first; those too close to a better one of their class are left out.

    Args:
        boxes: left, top, right and bottom (N, 4), none negative, float32.
        scores: (N,).
        labels: classes, or whatever else keeps boxes apart (N,).
        threshold: IoU above which two are too close.
        most: how many at most.
    """
    if not len(boxes):
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    if len(boxes) > SHIFTED:
        return batched_nms(boxes, scores, labels, threshold)[:most]
    # torchvision shifts fewer on a CPU, where the rounding of shifted boxes would make another choice
    shifted = boxes + (labels.to(boxes) * (boxes.max() + 1))[:, None]
    return nms(shifted, scores, threshold)[:most]


def has_area(boxes: Tensor) -> Tensor:
    """Which boxes (N, 4) have one, bool (N,); one that is not a number has none."""
    return (boxes[:, 2:] > boxes[:, :2]).all(1)
