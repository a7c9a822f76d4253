"""RetinaNet and its focal loss, https://arxiv.org/abs/1708.02002."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.layers.init import init_by_name, init_part
from metaformer.models.detection.anchors import Anchors, BoxCoder, rescale_boxes
from metaformer.models.detection.config import DetectorConfig
from metaformer.models.detection.detector import Candidates, Detector
from metaformer.models.detection.heads import RetinaNetHead, by_anchor
from metaformer.models.detection.matcher import IGNORED, Matcher
from metaformer.models.detection.nms import batched_nms, nonempty, topk_logits
from metaformer.models.detection.structures import Detections, Size, Targets, level_shapes

SCALES_PER_OCTAVE = 3
"""Anchor scales of each aspect ratio per doubling of size."""
ALPHA = 0.25
"""Weight of positives in the focal loss; negatives weigh the rest. Gamma is 2."""


class RetinaNetOutputs(NamedTuple):
    """Outputs of the head for each level of the pyramid, finest first."""

    logits: tuple[Tensor, ...]
    """(B, A · K, H_i, W_i), before a sigmoid."""
    deltas: tuple[Tensor, ...]
    """(B, A · 4, H_i, W_i)."""


class AssignedTargets(NamedTuple):
    """Targets of the anchors of a batch."""

    labels: tuple[Tensor, ...]
    """Class of each anchor (B, H_i·W_i·A) of each level; −1 for background, −2 if ignored."""
    images: Tensor
    """Image of each positive anchor (P,)."""
    anchors: Tensor
    """Its index among the anchors of all levels (P,)."""
    deltas: Tensor
    """Deltas of its object's box (P, 4)."""
    divisor: Tensor
    """Number of positive anchors, at least one per image."""


class RetinaNet(Detector):
    """One-stage detector: classes and box deltas of the anchors of each level."""

    @init_by_name
    def __init__(self, config: DetectorConfig, backbone: nn.Module | None = None) -> None:
        super().__init__(config, backbone)
        scales = [config.anchor_size * 2 ** (i / SCALES_PER_OCTAVE) for i in range(SCALES_PER_OCTAVE)]
        self.anchors = Anchors(self.strides, scales)
        self.coder = BoxCoder()
        self.matcher = Matcher(positive=0.5, negative=0.4)
        dims = (config.fpn_dim, config.head_channels)
        self.head = init_part("head", RetinaNetHead, *dims, self.anchors.per_cell, config.num_classes)

    def forward_head(self, x: Tensor) -> RetinaNetOutputs:
        """Map images (B, 3, H, W) to logits and deltas of each level."""
        return RetinaNetOutputs(*self.head(self.features(x)))

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def decode(
        self,
        outputs: RetinaNetOutputs,
        image_sizes: Sequence[Size],
        original_sizes: Sequence[Size] | None = None,
    ) -> list[Detections]:
        logits = [by_anchor(level, self.num_classes) for level in outputs.logits]
        deltas = [by_anchor(level, 4) for level in outputs.deltas]
        anchors = self.anchors.per_level(level_shapes(outputs.logits), outputs.logits[0].device)
        results = []
        for i, (size, original) in enumerate(zip(image_sizes, original_sizes or image_sizes, strict=True)):
            candidates = [
                self._candidates(level[i], delta[i], anchor)
                for level, delta, anchor in zip(logits, deltas, anchors, strict=True)
            ]
            scores, labels, moves, around = (torch.cat(parts) for parts in zip(*candidates, strict=True))
            boxes = rescale_boxes(self.coder.decode(moves, around, size), size, original)
            valid = nonempty(boxes)
            boxes, scores, labels = boxes[valid], scores[valid], labels[valid]
            kept = batched_nms(boxes, scores, labels, self.config.nms_threshold, self.config.max_detections)
            results.append(Detections(boxes[kept], scores[kept], labels[kept]))
        return results

    def class_candidates(self, outputs: RetinaNetOutputs, image_size: Size, label: int) -> Candidates:
        logits = torch.cat([by_anchor(level[:1], self.num_classes)[0, :, label] for level in outputs.logits])
        deltas = torch.cat([by_anchor(level[:1].detach(), 4)[0] for level in outputs.deltas])
        anchors = torch.cat(self.anchors.per_level(level_shapes(outputs.logits), logits.device))
        boxes = self.coder.decode(deltas, anchors, image_size)
        return Candidates(boxes, logits, logits.detach().float().sigmoid())

    def head_losses(
        self, outputs: RetinaNetOutputs, targets: Sequence[Targets], image_sizes: Sequence[Size]
    ) -> dict[str, Tensor]:
        """Focal loss `loss_cls` and L1 `loss_bbox`, both divided by the number of positive anchors."""
        assigned = self.assign_targets(level_shapes(outputs.logits), targets, image_sizes)
        deltas = torch.cat([by_anchor(level, 4) for level in outputs.deltas], 1)
        positive_deltas = deltas[assigned.images, assigned.anchors]
        focal = [
            focal_loss(by_anchor(level, self.num_classes), labels)
            for level, labels in zip(outputs.logits, assigned.labels, strict=True)
        ]
        return {
            "loss_cls": torch.stack(focal).sum() / assigned.divisor,
            "loss_bbox": (positive_deltas.float() - assigned.deltas).abs().sum() / assigned.divisor,
        }

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def assign_targets(
        self, shapes: Sequence[Size], targets: Sequence[Targets], image_sizes: Sequence[Size]
    ) -> AssignedTargets:
        """Assign the objects to the anchors of levels of these heights and widths.

        Args:
            shapes: height and width of each level.
            targets: the objects of each image.
            image_sizes: height and width of each image inside the padded batch.
        """
        device = targets[0].boxes.device
        levels = self.anchors.per_level(shapes, device)
        all_anchors = torch.cat(levels)
        valid = [self.anchors.valid_flags(shapes, size, device) for size in image_sizes]
        matches = torch.stack(
            [self.matcher(one.boxes, all_anchors, flags) for one, flags in zip(targets, valid, strict=True)]
        )
        images, anchors = (matches >= 0).nonzero(as_tuple=True)
        offsets = matches.new_tensor([0, *accumulate(len(one) for one in targets)])
        objects = matches[images, anchors] + offsets[images]  # among the objects of all images
        labels = torch.cat([one.labels for one in targets])[objects]
        boxes = torch.cat([one.boxes for one in targets])[objects]
        return AssignedTargets(
            matches.index_put((images, anchors), labels).split([len(level) for level in levels], 1),
            images,
            anchors,
            self.coder.encode(boxes, all_anchors[anchors]),
            (matches >= 0).sum(1).clamp(min=1).sum(),
        )

    def _candidates(self, logits: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, ...]:
        """Scores, labels, deltas and anchors of the best candidates of a level."""
        scores, indices = topk_logits(logits, self.config.rpn_pre_nms_topk, self.config.score_threshold)
        rows = indices // self.num_classes
        return scores, indices % self.num_classes, deltas[rows], anchors[rows]


def focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the focal loss over anchors and classes, float32.

    torchvision's computes the same from one-hot targets, in three times the memory.

    Args:
        logits: (…, K), before the sigmoid.
        labels: class of each anchor (…); −1 for background, −2 if ignored.
    """
    logits = logits.float()
    anchors = (labels >= 0).nonzero(as_tuple=True)
    positives = logits[(*anchors, labels[anchors])]
    as_negatives = (_negative_loss(logits).sum(-1) * (labels != IGNORED)).sum()
    positive_loss = ALPHA * _negative_loss(-positives).sum() / (1 - ALPHA)
    return as_negatives + positive_loss - _negative_loss(positives).sum()


def _negative_loss(logits: Tensor) -> Tensor:
    """(1 − alpha) · p² · −log(1 − p): the loss of each logit if its class is absent."""
    return (1 - ALPHA) * logits.sigmoid().square() * F.softplus(logits)
