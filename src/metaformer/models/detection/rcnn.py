"""Faster R-CNN, https://arxiv.org/abs/1506.01497, and Mask R-CNN, https://arxiv.org/abs/1703.06870."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metaformer.layers.init import init_by_name, init_part
from metaformer.models.detection.anchors import Anchors, BoxCoder, rescale_boxes
from metaformer.models.detection.config import DetectorConfig
from metaformer.models.detection.detector import Candidates, Detector, check_finite
from metaformer.models.detection.matcher import Matcher, Sampler
from metaformer.models.detection.nms import batched_nms
from metaformer.models.detection.roi_heads import (
    BoxHead,
    BoxPredictor,
    MaskHead,
    MaskPredictor,
    box_losses,
    mask_loss,
    mask_targets,
    pyramid_roi_align,
    require_masks,
    score_candidates,
)
from metaformer.models.detection.rpn import RPN
from metaformer.models.detection.structures import Detections, Size, Targets

BOX_ROI_SIDE, MASK_ROI_SIDE = 7, 14
"""Height and width of the RoI features of the box head and of the mask head."""


class RPNOutputs(NamedTuple):
    """Pyramid and outputs of the RPN, for each level, finest first."""

    features: tuple[Tensor, ...]
    """(B, fpn_dim, H_i, W_i)."""
    objectness: tuple[Tensor, ...]
    """Logits (B, 3, H_i, W_i)."""
    deltas: tuple[Tensor, ...]
    """(B, 12, H_i, W_i)."""


class SampledRegions(NamedTuple):
    """Regions of one image that the second stage is trained on, positives first."""

    boxes: Tensor
    """(N, 4)."""
    labels: Tensor
    """(N,); the number of classes for the background."""
    objects: Tensor
    """(P,), index of the object of each of the P positives."""

    @property
    def positive_boxes(self) -> Tensor:
        """(P, 4)."""
        return self.boxes[: len(self.objects)]


class RCNN(Detector):
    """Two-stage detector: a region proposal network, then classes, boxes and masks of its proposals."""

    @init_by_name
    def __init__(self, config: DetectorConfig, backbone: nn.Module | None = None) -> None:
        super().__init__(config, backbone)
        dim, classes = config.fpn_dim, config.num_classes
        anchors = Anchors(self.strides, [config.anchor_size])
        sampler = Sampler(config.rpn_batch_size, config.rpn_positive_fraction)
        self.rpn = init_part("rpn", RPN, dim, anchors, sampler)
        self.box_head = init_part("box_head", BoxHead, dim, BOX_ROI_SIDE, config.box_fc_dim)
        self.box_predictor = init_part("box_predictor", BoxPredictor, config.box_fc_dim, classes)
        self.mask_head: MaskHead | None = None
        self.mask_predictor: MaskPredictor | None = None
        if config.has_masks:
            self.mask_head = init_part("mask_head", MaskHead, dim, config.head_channels)
            shape = (config.head_channels, classes)
            self.mask_predictor = init_part("mask_predictor", MaskPredictor, *shape)
        self.coder = BoxCoder((0.1, 0.1, 0.2, 0.2))
        self.matcher = Matcher(positive=0.5, negative=0.5, min_positive=0.5)
        self.sampler = Sampler(config.roi_batch_size, config.roi_positive_fraction)

    def forward_head(self, x: Tensor) -> RPNOutputs:
        """Map images (B, 3, H, W) to the pyramid and the outputs of the RPN."""
        features = self.features(x)
        return RPNOutputs(tuple(features), *map(tuple, self.rpn(features)))

    # The number of regions depends on the data: nothing to compile.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def head_losses(
        self, outputs: RPNOutputs, targets: Sequence[Targets], image_sizes: Sequence[Size]
    ) -> dict[str, Tensor]:
        """Losses of the RPN, of the box head and, for `mask_rcnn`, of the mask head.

        Raises:
            ConfigError: `mask_rcnn` is given targets without masks.
        """
        boxes = [target.boxes for target in targets]
        rpn_cls, rpn_bbox = self.rpn.losses(outputs.objectness, outputs.deltas, boxes, image_sizes)
        proposals = self._proposals(outputs, image_sizes, self.config.rpn_pre_nms_topk_train)
        regions = [self._sample(*image) for image in zip(proposals, targets, strict=True)]
        loss_cls, loss_bbox = self._box_losses(outputs.features, regions, targets)
        losses = {
            "loss_rpn_cls": rpn_cls, "loss_rpn_bbox": rpn_bbox, "loss_cls": loss_cls, "loss_bbox": loss_bbox,
        }  # fmt: skip
        if self.has_masks:
            losses["loss_mask"] = self._mask_loss(outputs.features, regions, targets)
        return losses

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def decode(
        self, outputs: RPNOutputs, image_sizes: Sequence[Size], original_sizes: Sequence[Size] | None = None
    ) -> list[Detections]:
        proposals = self._proposals(outputs, image_sizes, self.config.rpn_pre_nms_topk)
        counts = [len(boxes) for boxes in proposals]
        second_stage = self._box_outputs(outputs.features, proposals)
        check_finite(*second_stage)
        logits, deltas = (joined.split(counts) for joined in second_stage)
        images = zip(proposals, logits, deltas, image_sizes, strict=True)
        boxes, scores, labels = zip(*(self._select(*image) for image in images), strict=True)
        masks = self._masks(outputs.features, boxes, labels)  # in the frame of the input, before rescaling
        scaled = map(rescale_boxes, boxes, image_sizes, original_sizes or image_sizes)
        return [Detections(*image) for image in zip(scaled, scores, labels, masks, strict=True)]

    def class_candidates(self, outputs: RPNOutputs, image_size: Size, label: int) -> Candidates:
        first = RPNOutputs(*(tuple(level[:1] for level in levels) for levels in outputs))
        with torch.no_grad():
            (proposals,) = self._proposals(first, [image_size], self.config.rpn_pre_nms_topk)
        logits, deltas = self._box_outputs(first.features, [proposals])
        boxes = self.coder.decode(deltas[:, label].detach(), proposals, image_size)
        return Candidates(boxes, logits[:, label], logits.detach().softmax(-1)[:, label])

    def _proposals(self, outputs: RPNOutputs, image_sizes: Sequence[Size], pre_nms_topk: int) -> list[Tensor]:
        return self.rpn.proposals(
            outputs.objectness,
            outputs.deltas,
            image_sizes,
            pre_nms_topk=pre_nms_topk,
            post_nms_topk=self.config.rpn_post_nms_topk,
            iou_threshold=self.config.rpn_nms_threshold,
        )

    def _select(
        self, proposals: Tensor, logits: Tensor, deltas: Tensor, image_size: Size
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (N, 4), scores (N,) and labels (N,) of one image, best first."""
        regions, labels, scores = score_candidates(logits, self.config.score_threshold)
        boxes = self.coder.decode(deltas[regions, labels], proposals[regions], image_size)
        kept = batched_nms(boxes, scores, labels, self.config.nms_threshold, self.config.max_detections)
        return boxes[kept], scores[kept], labels[kept]

    def _sample(self, proposals: Tensor, target: Targets) -> SampledRegions:
        """Sample regions of one image among its objects' boxes, each matched to itself, and its proposals."""
        itself = torch.arange(len(target), device=proposals.device)
        matches = torch.cat([itself, self.matcher(target.boxes, proposals)])
        positives, negatives = self.sampler(matches)
        boxes = torch.cat([target.boxes, proposals])[torch.cat([positives, negatives])]
        objects = matches[positives]
        background = objects.new_full((len(negatives),), self.num_classes)
        return SampledRegions(boxes, torch.cat([target.labels[objects], background]), objects)

    def _roi_align(self, features: Sequence[Tensor], boxes: Sequence[Tensor], side: int) -> Tensor:
        """RoI features on the backbone's levels; the extra level serves the RPN alone."""
        levels = len(features) - self.neck.extra_levels
        pooled = pyramid_roi_align(features[:levels], boxes, self.strides[:levels], side)
        # float32 to the parameters' type: autocast may have ended since the features were computed
        return pooled.to(self.box_head.fc6.weight.dtype)

    def _box_outputs(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        pooled = self._roi_align(features, boxes, BOX_ROI_SIDE)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return logits, deltas

    def _box_losses(
        self, features: Sequence[Tensor], regions: Sequence[SampledRegions], targets: Sequence[Targets]
    ) -> tuple[Tensor, Tensor]:
        logits, deltas = self._box_outputs(features, [image.boxes for image in regions])
        target_deltas = [
            self.coder.encode(target.boxes[image.objects], image.positive_boxes)
            for image, target in zip(regions, targets, strict=True)
        ]
        labels = torch.cat([image.labels for image in regions])
        return box_losses(logits, deltas, labels, torch.cat(target_deltas))

    def _mask_loss(
        self, features: Sequence[Tensor], regions: Sequence[SampledRegions], targets: Sequence[Targets]
    ) -> Tensor:
        boxes = [image.positive_boxes for image in regions]
        labels = torch.cat([image.labels[: len(image.objects)] for image in regions])
        crops = [
            mask_targets(require_masks(target), image.positive_boxes, image.objects)
            for target, image in zip(targets, regions, strict=True)
        ]
        return mask_loss(self._mask_logits(features, boxes, labels), torch.cat(crops))

    def _mask_logits(self, features: Sequence[Tensor], boxes: Sequence[Tensor], labels: Tensor) -> Tensor:
        assert self.mask_head is not None and self.mask_predictor is not None
        pooled = self._roi_align(features, boxes, MASK_ROI_SIDE)
        return self.mask_predictor.forward_class(self.mask_head(pooled), labels)

    def _masks(
        self, features: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> list[Tensor | None]:
        if not self.has_masks:
            return [None] * len(boxes)
        logits = self._mask_logits(features, boxes, torch.cat(list(labels)))
        return list(logits.sigmoid().split([len(image) for image in boxes]))
