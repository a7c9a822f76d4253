"""RetinaNet, https://arxiv.org/abs/1708.02002: every position says what is around it."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.retinanet import RetinaNetHead

from metaformer.models.detection.anchors import Anchors
from metaformer.models.detection.box_coder import BoxCoder, rescale
from metaformer.models.detection.config import DetectorConfig
from metaformer.models.detection.detector import Detector
from metaformer.models.detection.focal import focal_loss
from metaformer.models.detection.matcher import Matcher
from metaformer.models.detection.nms import has_area, keep, top_level
from metaformer.models.detection.structures import Detections, Size, Targets

OCTAVE = 3
"""Anchors of each shape per doubling of size."""


class RetinaMaps(NamedTuple):
    """What RetinaNet says at every position, for each level of the pyramid."""

    logits: tuple[Tensor, ...]
    """(B, anchors · num_classes, H_i, W_i), of independent probabilities."""
    deltas: tuple[Tensor, ...]
    """(B, anchors · 4, H_i, W_i), the boxes' differences from the anchors."""


class Truth(NamedTuple):
    """What RetinaNet should say about a batch."""

    labels: tuple[Tensor, ...]
    """Of each level (B, H_i·W_i·anchors): the class, −1 for none, −2 where nothing is asked."""
    images: Tensor
    """For each anchor with an object (P,) its image."""
    places: Tensor
    """… and its number among the anchors of all levels (P,)."""
    deltas: Tensor
    """… and the difference of the object's box from it (P, 4)."""
    divisor: Tensor
    """Anchors with an object in the batch; an image without any counts as one."""


class RetinaNet(Detector):
    """A detector of one stage; see `Detector`."""

    def __init__(self, config: DetectorConfig, backbone: nn.Module | None = None) -> None:
        super().__init__(config, backbone)
        self.anchors = Anchors(self.strides, [config.anchor_size * 2 ** (i / OCTAVE) for i in range(OCTAVE)])
        self.coder = BoxCoder()
        self.matcher = Matcher(positive=0.5, negative=0.4)
        dim = config.head_channels
        self.head = RetinaNetHead(dim, self.anchors.count, config.num_classes)
        if dim != config.fpn_dim:
            for tower in (self.head.classification_head, self.head.regression_head):
                tower.conv[0][0] = nn.Conv2d(config.fpn_dim, dim, 3, padding=1)
                nn.init.normal_(tower.conv[0][0].weight, std=0.01)
                nn.init.zeros_(tower.conv[0][0].bias)

    def raw(self, x: Tensor) -> RetinaMaps:
        """Map images (B, 3, H, W) to the head's maps."""
        levels = self.maps(x)
        classes, boxes = self.head.classification_head, self.head.regression_head
        return RetinaMaps(
            tuple(classes.cls_logits(classes.conv(level)) for level in levels),
            tuple(boxes.bbox_reg(boxes.conv(level)) for level in levels),
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def decode(
        self, raw: RetinaMaps, image_sizes: Sequence[Size], original_sizes: Sequence[Size] | None = None
    ) -> list[Detections]:
        logits = [_places(level, self.num_classes) for level in raw.logits]
        deltas = [_places(level, 4) for level in raw.deltas]
        anchors = self.anchors.per_level(_shapes(raw), raw.logits[0].device)
        results = []
        for i, (size, original) in enumerate(zip(image_sizes, original_sizes or image_sizes, strict=True)):
            found = [
                self._candidates(level[i], delta[i], anchor)
                for level, delta, anchor in zip(logits, deltas, anchors, strict=True)
            ]
            scores, labels, chosen, near = (torch.cat(parts) for parts in zip(*found, strict=True))
            boxes = rescale(self.coder.decode(chosen, near, size), size, original)
            there = has_area(boxes)
            boxes, scores, labels = boxes[there], scores[there], labels[there]
            best = keep(boxes, scores, labels, self.config.nms_threshold, self.config.max_detections)
            results.append(Detections(boxes[best], scores[best], labels[best]))
        return results

    def parts(self, x: Tensor, targets: Sequence[Targets], image_sizes: Sequence[Size]) -> dict[str, Tensor]:
        """The focal loss `loss_cls` and L1 `loss_bbox`, both divided by the number of objects' anchors."""
        raw = self.raw(x)
        truth = self.truth(_shapes(raw), targets, image_sizes)
        deltas = torch.cat([_places(level, 4) for level in raw.deltas], 1)[truth.images, truth.places]
        focal = [
            focal_loss(_places(level, self.num_classes), own)
            for level, own in zip(raw.logits, truth.labels, strict=True)
        ]
        return {
            "loss_cls": torch.stack(focal).sum() / truth.divisor,
            "loss_bbox": (deltas.float() - truth.deltas).abs().sum() / truth.divisor,
        }

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def truth(self, shapes: Sequence[Size], targets: Sequence[Targets], image_sizes: Sequence[Size]) -> Truth:
        """What the maps of levels of these heights and widths should say.

        Args:
            shapes: height and width of each level.
            targets: the objects in each image.
            image_sizes: height and width of each image inside the padded batch.
        """
        device = targets[0].boxes.device
        levels = self.anchors.per_level(shapes, device)
        anchors = torch.cat(levels)
        inside = [self.anchors.inside(shapes, size, device) for size in image_sizes]
        matched = [self.matcher(one.boxes, anchors, own) for one, own in zip(targets, inside, strict=True)]
        matches = torch.stack(matched)
        images, places = (matches >= 0).nonzero(as_tuple=True)
        before = matches.new_tensor([0, *accumulate(len(one) for one in targets)])
        objects = matches[images, places] + before[images]
        labels = torch.cat([one.labels for one in targets])[objects]
        boxes = torch.cat([one.boxes for one in targets])[objects]
        return Truth(
            matches.index_put((images, places), labels).split([len(level) for level in levels], 1),
            images,
            places,
            self.coder.encode(boxes, anchors[places]),
            (matches >= 0).sum(1).clamp(min=1).sum(),
        )

    def _candidates(self, logits: Tensor, deltas: Tensor, anchors: Tensor) -> tuple[Tensor, ...]:
        """Scores, classes, differences and anchors of a level's best."""
        scores, places = top_level(logits, self.config.rpn_pre_nms_topk, self.config.score_threshold)
        rows = places // self.num_classes
        return scores, places % self.num_classes, deltas[rows], anchors[rows]


def _places(level: Tensor, channels: int) -> Tensor:
    """Lay a map (B, A·C, H, W) out by anchors (B, H·W·A, C); no copy of one that lies channels-last."""
    return level.permute(0, 2, 3, 1).reshape(len(level), -1, channels)


def _shapes(raw: RetinaMaps) -> list[Size]:
    return [(level.shape[2], level.shape[3]) for level in raw.logits]
