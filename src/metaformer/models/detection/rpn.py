"""The first stage: where there may be an object, https://arxiv.org/abs/1506.01497."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.rpn import RPNHead, concat_box_prediction_layers

from metaformer.models.detection.anchors import Anchors
from metaformer.models.detection.box_coder import BoxCoder
from metaformer.models.detection.matcher import Matcher
from metaformer.models.detection.nms import has_area, keep
from metaformer.models.detection.sampling import Sampler
from metaformer.models.detection.structures import Size


class RPN(nn.Module):
    """Propose boxes for any kind of object, by anchors on each level.

    Args:
        dim: channels of the pyramid.
        anchors: those of each level.
        sampler: picks the anchors that the losses look at.
    """

    def __init__(self, dim: int, anchors: Anchors, sampler: Sampler) -> None:
        super().__init__()
        self.head = RPNHead(dim, anchors.count)
        self.anchors, self.sampler = anchors, sampler
        self.coder = BoxCoder()
        self.matcher = Matcher(positive=0.7, negative=0.3, min_positive=0.3)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Map levels (B, dim, H_i, W_i) to logits (B, A, H_i, W_i) and deltas (B, 4A, H_i, W_i)."""
        objectness, deltas = self.head(list(maps))
        return objectness, deltas

    @torch.no_grad()
    def proposals(
        self,
        objectness: Sequence[Tensor],
        deltas: Sequence[Tensor],
        sizes: Sequence[Size],
        *,
        candidates: int,
        most: int,
        threshold: float,
    ) -> list[Tensor]:
        """Choose boxes (N_i, 4) of each image, best first, in pixels of the input.

        Args:
            objectness: logits of each level.
            deltas: deltas of each level.
            sizes: height and width of each image, which its boxes are clipped to.
            candidates: boxes of each level that go into suppression, at most.
            most: boxes of each image, at most.
            threshold: IoU above which the worse of two boxes of a level is left out.
        """
        images = len(sizes)
        anchors = self.anchors.per_level(_shapes(objectness), objectness[0].device)
        logits, moves, places, levels = [], [], [], []
        for i, (scores, shifts) in enumerate(zip(objectness, deltas, strict=True)):
            # the order of the logits is that of the probabilities, with fewer ties
            flat_scores, flat_shifts = _flat([scores], [shifts], images)
            best, index = flat_scores.topk(min(candidates, flat_scores.shape[1]), dim=1)
            logits.append(best)
            moves.append(flat_shifts.gather(1, index[..., None].expand(-1, -1, 4)))
            places.append(anchors[i][index])
            levels.append(torch.full_like(index[0], i))
        level = torch.cat(levels)
        every = zip(torch.cat(logits, 1), torch.cat(moves, 1), torch.cat(places, 1), sizes, strict=True)
        found = []
        for scores, shifts, around, size in every:
            boxes = self.coder.decode(shifts, around, size)
            real = has_area(boxes).nonzero()[:, 0]
            chosen = keep(boxes[real], scores[real], level[real], threshold, most)
            found.append(boxes[real[chosen]])
        return found

    def losses(
        self,
        objectness: Sequence[Tensor],
        deltas: Sequence[Tensor],
        wanted: Sequence[Tensor],
        sizes: Sequence[Size],
    ) -> tuple[Tensor, Tensor]:
        """Losses of logits and of deltas, both divided by the anchors looked at.

        Args:
            objectness: logits of each level.
            deltas: deltas of each level.
            wanted: boxes (G_i, 4) of each image's objects.
            sizes: height and width of each image; anchors beyond it, in the batch's padding, do not count.
        """
        shapes, device = _shapes(objectness), objectness[0].device
        anchors = torch.cat(self.anchors.per_level(shapes, device))
        logits, moves = _flat(objectness, deltas, len(wanted))
        classes, boxes, divisor = logits.new_zeros(()), moves.new_zeros(()), 0
        for scores, shifts, truth, size in zip(logits, moves, wanted, sizes, strict=True):
            matches = self.matcher(truth, anchors, self.anchors.inside(shapes, size, device))
            positives, negatives = self.sampler(matches)
            divisor += max(1, len(positives)) + max(1, len(negatives))
            ones, zeros = scores[positives], scores[negatives]
            classes = classes + F.softplus(-ones).sum() + F.softplus(zeros).sum()
            aims = self.coder.encode(truth[matches[positives]], anchors[positives])
            boxes = boxes + F.l1_loss(shifts[positives], aims, reduction="sum")
        return classes / divisor, boxes / divisor


def _shapes(levels: Sequence[Tensor]) -> list[Size]:
    return [(level.shape[2], level.shape[3]) for level in levels]


def _flat(objectness: Sequence[Tensor], deltas: Sequence[Tensor], images: int) -> tuple[Tensor, Tensor]:
    """Logits (B, N) and deltas (B, N, 4) in float32, in the order of the anchors."""
    logits, moves = concat_box_prediction_layers(list(objectness), list(deltas))
    return logits.view(images, -1).float(), moves.view(images, -1, 4).float()
