"""Assign anchors and proposals to objects by IoU, and sample them for the losses."""

from dataclasses import dataclass

import torch
from torch import Tensor

NEGATIVE, IGNORED = -1, -2
"""Matches of boxes that are background, and of boxes that do not enter the loss."""
PAIRS = 1 << 22
"""Pairs of an object and an anchor whose IoU is computed at once."""


class Matcher:
    """Match each anchor to the object of highest IoU, and each object to its best anchors.

    Unlike torchvision's, an object's best anchors become its own even where they overlap another one more.

    Args:
        positive: IoU from which an anchor belongs to the object.
        negative: IoU below which it is background; between the two it is ignored.
        min_positive: least IoU of an object's best anchors, which are all that tie; of several such objects
            the last one wins.
    """

    def __init__(self, positive: float, negative: float, min_positive: float = 0.0) -> None:
        self.positive, self.negative, self.min_positive = positive, negative, min_positive

    def __call__(self, boxes: Tensor, anchors: Tensor, valid: Tensor | None = None) -> Tensor:
        """Match anchors to objects.

        Args:
            boxes: boxes of the objects (G, 4).
            anchors: boxes (N, 4).
            valid: bool (N,); the others are ignored. All by default.

        Returns:
            Index of each anchor's object (N,), int64; −1 for background, −2 if ignored.
        """
        best = anchors.new_full((len(anchors),), -1.0)
        owner = torch.full_like(best, NEGATIVE, dtype=torch.int64)
        forced = torch.full_like(owner, NEGATIVE)
        if not len(anchors):
            return owner
        step = max(1, PAIRS // len(anchors))
        for first in range(0, len(boxes), step):
            overlap = iou(boxes[first : first + step], anchors)
            if valid is not None:
                overlap.masked_fill_(~valid, -1)
            value, index = overlap.max(0)
            better = value > best  # on ties the first object stays
            best, owner = torch.where(better, value, best), torch.where(better, index + first, owner)
            most = overlap.amax(1, keepdim=True)
            ties = (overlap == most) & (most >= self.min_positive)
            indices = torch.arange(first, first + len(overlap), device=owner.device)
            forced = torch.maximum(forced, torch.where(ties, indices[:, None], NEGATIVE).amax(0))
        matches = torch.where(best < self.negative, NEGATIVE, IGNORED)
        matches = torch.where(best >= self.positive, owner, matches)
        matches = torch.where(forced >= 0, forced, matches)
        return matches if valid is None else torch.where(valid, matches, IGNORED)


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union (G, N) of boxes (G, 4) and others (N, 4), in little memory."""
    left, top, right, bottom = boxes[:, :, None].unbind(1)
    width = torch.minimum(right, others[:, 2]).sub_(torch.maximum(left, others[:, 0])).clamp_(min=0)
    height = torch.minimum(bottom, others[:, 3]).sub_(torch.maximum(top, others[:, 1])).clamp_(min=0)
    overlap = width.mul_(height)
    area = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    union = ((right - left) * (bottom - top) + area).sub_(overlap).clamp_(min=1e-6)
    return overlap.div_(union)


@dataclass(frozen=True)
class Sampler:
    """Random sampling of positive and negative matches."""

    batch_size: int
    """Samples per image, at most."""
    positive_fraction: float
    """Largest fraction of positives; negatives fill the rest."""

    def __call__(self, matches: Tensor) -> tuple[Tensor, Tensor]:
        """Map the matches (N,) of a `Matcher` to sorted indices of positives and of negatives."""
        positives = _sample(matches >= 0, int(self.batch_size * self.positive_fraction))
        return positives, _sample(matches == NEGATIVE, self.batch_size - len(positives))


def _sample(flags: Tensor, limit: int) -> Tensor:
    found = flags.nonzero()[:, 0]
    if len(found) <= limit:
        return found
    chosen = torch.randperm(len(found), device=found.device)[:limit]
    return found[chosen.sort().values]
