"""Faster R-CNN, https://arxiv.org/abs/1506.01497, and Mask R-CNN, https://arxiv.org/abs/1703.06870."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metaformer.models.detection.anchors import Anchors
from metaformer.models.detection.box_coder import BoxCoder, rescale
from metaformer.models.detection.box_head import BoxHead, BoxPredictor, box_losses, candidates
from metaformer.models.detection.config import DetectorConfig
from metaformer.models.detection.detector import Detector, check_finite
from metaformer.models.detection.mask_head import MaskHead, MaskPredictor, mask_loss, mask_targets, masks_of
from metaformer.models.detection.matcher import Matcher
from metaformer.models.detection.nms import keep
from metaformer.models.detection.roi_align import pool
from metaformer.models.detection.rpn import RPN
from metaformer.models.detection.sampling import Sampler
from metaformer.models.detection.structures import Detections, Size, Targets

BOX_SIDE, MASK_ROI_SIDE = 7, 14
"""Positions on each side of the features that a box, and that a mask is found from."""
RPN_PARTS = ("loss_rpn_cls", "loss_rpn_bbox")


class PyramidMaps(NamedTuple):
    """What a two-stage network gives before anything is chosen, for each level, finest first."""

    maps: tuple[Tensor, ...]
    """(B, fpn_dim, H_i, W_i)."""
    objectness: tuple[Tensor, ...]
    """(B, 3, H_i, W_i)."""
    deltas: tuple[Tensor, ...]
    """(B, 12, H_i, W_i)."""


class Regions(NamedTuple):
    """Boxes of one image that the second stage learns from, those of objects first."""

    boxes: Tensor
    """(N, 4)."""
    labels: Tensor
    """(N,); the number of classes for the background."""
    objects: Tensor
    """(P,), which object each of the first P boxes is of."""


class TwoStage(Detector):
    """Propose boxes, then tell what is in each, with a mask for `mask_rcnn`."""

    def __init__(self, config: DetectorConfig, backbone: nn.Module | None = None) -> None:
        super().__init__(config, backbone)
        dim, classes = config.fpn_dim, config.num_classes
        anchors = Anchors(self.strides, [config.anchor_size])
        self.rpn = RPN(dim, anchors, Sampler(config.rpn_samples, config.rpn_positive))
        self.box_head = BoxHead(dim, BOX_SIDE, config.box_fc_dim)
        self.box_predictor = BoxPredictor(config.box_fc_dim, classes)
        self.mask_head: MaskHead | None = None
        self.mask_predictor: MaskPredictor | None = None
        if config.has_masks:
            self.mask_head = MaskHead(dim, config.head_channels)
            self.mask_predictor = MaskPredictor(config.head_channels, classes)
        self.coder = BoxCoder((0.1, 0.1, 0.2, 0.2))
        self.matcher = Matcher(positive=0.5, negative=0.5, min_positive=0.5)
        self.sampler = Sampler(config.roi_batch_size, config.box_positive)

    def raw(self, x: Tensor) -> PyramidMaps:
        """Map images (B, 3, H, W) to the pyramid and what the first stage says of it."""
        maps = self.maps(x)
        return PyramidMaps(tuple(maps), *map(tuple, self.rpn(maps)))

    def parts(self, x: Tensor, targets: Sequence[Targets], image_sizes: Sequence[Size]) -> dict[str, Tensor]:
        """Losses of the proposals, of the boxes and, for `mask_rcnn`, of the masks.

        Raises:
            ConfigError: masks are learned, and there are none.
        """
        return self._losses(self.raw(x), targets, image_sizes)

    # how many regions there are depends on the data: nothing to compile
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _losses(
        self, raw: PyramidMaps, targets: Sequence[Targets], image_sizes: Sequence[Size]
    ) -> dict[str, Tensor]:
        boxes = [one.boxes for one in targets]
        first = self.rpn.losses(raw.objectness, raw.deltas, boxes, image_sizes)
        parts = dict(zip(RPN_PARTS, first, strict=True))
        proposals = self._proposals(raw, image_sizes, self.config.rpn_pre_nms_topk_train)
        regions = [self._regions(*pair) for pair in zip(proposals, targets, strict=True)]
        parts["loss_cls"], parts["loss_bbox"] = self._box_losses(raw.maps, regions, targets)
        if self.has_masks:
            parts["loss_mask"] = self._mask_loss(raw.maps, regions, targets)
        return parts

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def decode(
        self, raw: PyramidMaps, image_sizes: Sequence[Size], original_sizes: Sequence[Size] | None = None
    ) -> list[Detections]:
        proposals = self._proposals(raw, image_sizes, self.config.rpn_pre_nms_topk)
        counts = [len(boxes) for boxes in proposals]
        answer = self._classify(raw.maps, proposals)
        check_finite(*answer)
        logits, deltas = (all_of.split(counts) for all_of in answer)
        found = [self._choose(*image) for image in zip(proposals, logits, deltas, image_sizes, strict=True)]
        boxes, scores, labels = zip(*found, strict=True)
        masks = self._masks(raw.maps, boxes, labels)
        # masks are found where the network saw the boxes
        told = map(rescale, boxes, image_sizes, original_sizes or image_sizes)
        return [Detections(*parts) for parts in zip(told, scores, labels, masks, strict=True)]

    def _proposals(self, raw: PyramidMaps, sizes: Sequence[Size], candidates: int) -> list[Tensor]:
        most, threshold = self.config.proposals, self.config.rpn_nms_threshold
        return self.rpn.proposals(
            raw.objectness, raw.deltas, sizes, candidates=candidates, most=most, threshold=threshold
        )

    def _choose(
        self, proposals: Tensor, logits: Tensor, deltas: Tensor, size: Size
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels of one image, best first."""
        regions, labels, scores = candidates(logits, self.config.score_threshold)
        boxes = self.coder.decode(deltas[regions, labels], proposals[regions], size)
        best = keep(boxes, scores, labels, self.config.nms_threshold, self.config.max_detections)
        return boxes[best], scores[best], labels[best]

    def _regions(self, proposals: Tensor, truth: Targets) -> Regions:
        """Sample proposals, and objects' own boxes as the best of proposals."""
        itself = torch.arange(len(truth), device=proposals.device)
        matches = torch.cat([itself, self.matcher(truth.boxes, proposals)])
        positives, negatives = self.sampler(matches)
        boxes = torch.cat([truth.boxes, proposals])[torch.cat([positives, negatives])]
        objects = matches[positives]
        background = objects.new_full((len(negatives),), self.num_classes)
        return Regions(boxes, torch.cat([truth.labels[objects], background]), objects)

    def _classify(self, maps: Sequence[Tensor], boxes: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        pooled = self._pool(maps, boxes, BOX_SIDE)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        return logits, deltas

    def _pool(self, maps: Sequence[Tensor], boxes: Sequence[Tensor], side: int) -> Tensor:
        """Pool from the backbone's levels: the one added is the proposals' alone."""
        own = len(maps) - self.neck.added
        pooled = pool(maps[:own], boxes, self.strides[:own], side)
        # autocast, which may have ended since the maps were made, begins from the parameters' type
        return pooled.to(self.box_head.fc6.weight.dtype)

    def _box_losses(
        self, maps: Sequence[Tensor], regions: Sequence[Regions], targets: Sequence[Targets]
    ) -> tuple[Tensor, Tensor]:
        logits, deltas = self._classify(maps, [one.boxes for one in regions])
        aims = [
            self.coder.encode(target.boxes[one.objects], one.boxes[: len(one.objects)])
            for one, target in zip(regions, targets, strict=True)
        ]
        return box_losses(logits, deltas, torch.cat([one.labels for one in regions]), torch.cat(aims))

    def _mask_loss(
        self, maps: Sequence[Tensor], regions: Sequence[Regions], targets: Sequence[Targets]
    ) -> Tensor:
        boxes = [one.boxes[: len(one.objects)] for one in regions]
        labels = torch.cat([one.labels[: len(one.objects)] for one in regions])
        wanted = [
            mask_targets(masks_of(target), box, one.objects)
            for target, box, one in zip(targets, boxes, regions, strict=True)
        ]
        return mask_loss(self._mask_logits(maps, boxes, labels), torch.cat(wanted))

    def _mask_logits(self, maps: Sequence[Tensor], boxes: Sequence[Tensor], labels: Tensor) -> Tensor:
        assert self.mask_head is not None and self.mask_predictor is not None
        return self.mask_predictor.own(self.mask_head(self._pool(maps, boxes, MASK_ROI_SIDE)), labels)

    def _masks(
        self, maps: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> list[Tensor | None]:
        if not self.has_masks:
            return [None] * len(boxes)
        logits = self._mask_logits(maps, boxes, torch.cat(list(labels)))
        return list(logits.sigmoid().split([len(one) for one in boxes]))
