"""Which object each box should find."""

import torch
from torch import Tensor

NEGATIVE, IGNORED = -1, -2
PAIRS = 1 << 22
"""Pairs of an object and a box that are looked at at once."""


class Matcher:
    """Give each box the object that it overlaps most, if enough; and each object its best boxes.

    In torchvision's class the best boxes of an object stay with the object that they overlap most.

    Args:
        positive: IoU from which a box is the object's.
        negative: IoU below which it is nobody's; between the two it does not count.
        min_positive: IoU that an object's best box must have.
        low_quality: give each object its best boxes, all of them where several are equally good, whatever
            else they overlap; of several objects the last one wins.
    """

    def __init__(
        self, positive: float, negative: float, min_positive: float = 0.0, low_quality: bool = True
    ) -> None:
        self.positive, self.negative = positive, negative
        self.min_positive, self.low_quality = min_positive, low_quality

    def __call__(self, boxes: Tensor, anchors: Tensor, inside: Tensor | None = None) -> Tensor:
        """Match objects and anchors.

        Args:
            boxes: those of the objects (G, 4).
            anchors: boxes (N, 4).
            inside: which of them take part, bool (N,); all when not given.

        Returns:
            For each anchor the number of its object (N,), −1 if it is nobody's, −2 if it does not count.
        """
        best = anchors.new_full((len(anchors),), -1.0)
        owner = torch.full_like(best, NEGATIVE, dtype=torch.int64)
        forced = torch.full_like(owner, NEGATIVE)
        if not len(anchors):
            return owner
        step = max(1, PAIRS // len(anchors))
        for first in range(0, len(boxes), step):
            overlap = iou(boxes[first : first + step], anchors)
            if inside is not None:
                overlap.masked_fill_(~inside, -1)
            value, index = overlap.max(0)
            better = value > best  # of equal ones the first object stays
            best, owner = torch.where(better, value, best), torch.where(better, index + first, owner)
            if self.low_quality:
                most = overlap.amax(1, keepdim=True)
                ties = (overlap == most) & (most >= self.min_positive)
                numbers = torch.arange(first, first + len(overlap), device=owner.device)
                last = torch.where(ties, numbers[:, None], NEGATIVE).amax(0)
                forced = torch.maximum(forced, last)
        matched = torch.where(best < self.negative, NEGATIVE, IGNORED)
        matched = torch.where(best >= self.positive, owner, matched)
        matched = torch.where(forced >= 0, forced, matched)
        return matched if inside is None else torch.where(inside, matched, IGNORED)


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union (G, N) of boxes (G, 4) and others (N, 4), in little memory."""
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    width = torch.minimum(right, others[:, 2]).sub_(torch.maximum(left, others[:, 0])).clamp_(min=0)
    height = torch.minimum(bottom, others[:, 3]).sub_(torch.maximum(top, others[:, 1])).clamp_(min=0)
    overlap = width.mul_(height)
    area = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    union = ((right - left) * (bottom - top) + area).sub_(overlap).clamp_(min=1e-6)
    return overlap.div_(union)
