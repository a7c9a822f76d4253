"""Region proposal network, https://arxiv.org/abs/1506.01497."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.models.detection.anchors import Anchors, BoxCoder
from metaformer.models.detection.heads import RPNHead, by_anchor
from metaformer.models.detection.matcher import Matcher, Sampler
from metaformer.models.detection.nms import batched_nms, nonempty
from metaformer.models.detection.structures import Size, level_shapes


class RPN(nn.Module):
    """Region proposal network: objectness and box deltas of the anchors of each level.

    Args:
        dim: channels of the pyramid.
        anchors: anchors of each level.
        sampler: samples the anchors to train on.
    """

    def __init__(self, dim: int, anchors: Anchors, sampler: Sampler) -> None:
        super().__init__()
        self.head = RPNHead(dim, anchors.per_cell)
        self.anchors, self.sampler = anchors, sampler
        self.coder = BoxCoder()
        self.matcher = Matcher(positive=0.7, negative=0.3, min_positive=0.3)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Map levels (B, dim, H_i, W_i) to logits (B, A, H_i, W_i) and deltas (B, 4A, H_i, W_i)."""
        objectness, deltas = self.head(features)
        return objectness, deltas

    @torch.no_grad()
    def proposals(
        self,
        objectness: Sequence[Tensor],
        deltas: Sequence[Tensor],
        image_sizes: Sequence[Size],
        *,
        pre_nms_topk: int,
        post_nms_topk: int,
        iou_threshold: float,
    ) -> list[Tensor]:
        """Select the proposals (N_i, 4) of each image, best first, in pixels of the input.

        Args:
            objectness: logits of each level.
            deltas: deltas of each level.
            image_sizes: height and width of each image, which its proposals are clipped to.
            pre_nms_topk: best anchors of each level that enter NMS.
            post_nms_topk: proposals per image, at most.
            iou_threshold: IoU above which the worse of two proposals of a level is removed.
        """
        anchors = self.anchors.per_level(level_shapes(objectness), objectness[0].device)
        top_logits, top_deltas, top_anchors, levels = [], [], [], []
        for i, (level_logits, level_deltas) in enumerate(zip(objectness, deltas, strict=True)):
            flat_logits, flat_deltas = _flatten([level_logits], [level_deltas])
            # by logits, not by scores: the same order with fewer ties
            best, index = flat_logits.topk(min(pre_nms_topk, flat_logits.shape[1]), dim=1)  # (B, k)
            top_logits.append(best)
            top_deltas.append(flat_deltas.gather(1, index[..., None].expand(-1, -1, 4)))
            top_anchors.append(anchors[i][index])
            levels.append(torch.full_like(index[0], i))
        level = torch.cat(levels)
        joined = (torch.cat(parts, 1) for parts in (top_logits, top_deltas, top_anchors))
        proposals = []
        for logits, moves, around, size in zip(*joined, image_sizes, strict=True):
            boxes = self.coder.decode(moves, around, size)
            valid = nonempty(boxes).nonzero()[:, 0]
            kept = batched_nms(boxes[valid], logits[valid], level[valid], iou_threshold, post_nms_topk)
            proposals.append(boxes[valid[kept]])
        return proposals

    def losses(
        self,
        objectness: Sequence[Tensor],
        deltas: Sequence[Tensor],
        boxes: Sequence[Tensor],
        image_sizes: Sequence[Size],
    ) -> tuple[Tensor, Tensor]:
        """Binary cross-entropy of the logits and L1 of the deltas, divided by the number of sampled anchors.

        Args:
            objectness: logits of each level.
            deltas: deltas of each level.
            boxes: (G_i, 4) of the objects of each image.
            image_sizes: height and width of each image; anchors in the padding beyond are ignored.
        """
        shapes, device = level_shapes(objectness), objectness[0].device
        anchors = torch.cat(self.anchors.per_level(shapes, device))
        logits, moves = _flatten(objectness, deltas)
        loss_cls, loss_bbox, divisor = logits.new_zeros(()), moves.new_zeros(()), 0
        for own_logits, own_deltas, truth, size in zip(logits, moves, boxes, image_sizes, strict=True):
            matches = self.matcher(truth, anchors, self.anchors.valid_flags(shapes, size, device))
            positives, negatives = self.sampler(matches)
            divisor += max(1, len(positives)) + max(1, len(negatives))
            ones, zeros = own_logits[positives], own_logits[negatives]
            loss_cls = loss_cls + F.softplus(-ones).sum() + F.softplus(zeros).sum()
            targets = self.coder.encode(truth[matches[positives]], anchors[positives])
            loss_bbox = loss_bbox + F.l1_loss(own_deltas[positives], targets, reduction="sum")
        return loss_cls / divisor, loss_bbox / divisor


def _flatten(objectness: Sequence[Tensor], deltas: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (B, N) and deltas (B, N, 4), float32, in the order of the anchors."""
    logits = torch.cat([by_anchor(level, 1)[..., 0] for level in objectness], 1)
    moves = torch.cat([by_anchor(level, 4) for level in deltas], 1)
    return logits.float(), moves.float()
