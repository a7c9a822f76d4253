"""Top-k selection and non-maximum suppression of candidate boxes."""

from math import log

import torch
from torch import Tensor

SHIFTED = 10_000
"""Up to this many boxes, NMS of all classes is one call, with each class shifted to a region of its own."""


def topk_logits(logits: Tensor, k: int, threshold: float | None = None) -> tuple[Tensor, Tensor]:
    """Select the highest sigmoid scores among logits of any shape.

    Args:
        logits: before the sigmoid.
        k: how many at most.
        threshold: score that they exceed; None for all.

    Returns:
        Scores (N,), float32, highest first and ties in order, and indices into the flattened logits (N,).
    """
    flat = logits.flatten()
    if threshold is None:
        scores, indices = flat.float().sigmoid(), None
    else:
        # Few of millions pass: a loose bound on the logits first, then the sigmoid of those left.
        bound = log(threshold / (1 - threshold)) - 0.1 if 0 < threshold < 1 else float("-inf")
        indices = (flat > bound).nonzero()[:, 0]
        scores = flat[indices].float().sigmoid()
        above = scores > threshold
        scores, indices = scores[above], indices[above]
    order = stable_topk(scores, k)
    return scores[order], order if indices is None else indices[order]


def stable_topk(scores: Tensor, k: int) -> Tensor:
    """Indices of the k highest scores, highest first; ties stay in order."""
    if len(scores) <= k:
        return scores.argsort(descending=True, stable=True)
    least = scores.topk(k, sorted=False).values.min()
    candidates = (scores >= least).nonzero()[:, 0]
    return candidates[scores[candidates].argsort(descending=True, stable=True)[:k]]


def batched_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """Non-maximum suppression within each class: indices of the boxes that remain, best first.

    Args:
        boxes: left, top, right and bottom (N, 4), none negative, float32.
        scores: (N,).
        labels: classes, or pyramid levels (N,).
        iou_threshold: of two boxes of a class with a greater IoU the worse one is removed.
        limit: how many remain at most.
    """
    from torchvision import ops

    if not len(boxes):
        return torch.zeros(0, dtype=torch.int64, device=boxes.device)
    if len(boxes) > SHIFTED:
        return ops.batched_nms(boxes, scores, labels, iou_threshold)[:limit]
    # torchvision shifts fewer boxes on a CPU; shifting rounds coordinates, which would change the choice
    shifted = boxes + (labels.to(boxes) * (boxes.max() + 1))[:, None]
    return ops.nms(shifted, scores, iou_threshold)[:limit]


def nonempty(boxes: Tensor) -> Tensor:
    """Flags (N,), bool, of the boxes (N, 4) with an area; NaN counts as empty."""
    return (boxes[:, 2:] > boxes[:, :2]).all(1)
