"""Configuration of a detector."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from metaformer.backbones.config import Count
from metaformer.models.base import DenseConfig
from metaformer.serialize import POSITIVE, PROBABILITY, OneOf

KINDS = ("retinanet", "faster_rcnn", "mask_rcnn")
"""https://arxiv.org/abs/1708.02002, https://arxiv.org/abs/1506.01497 and https://arxiv.org/abs/1703.06870."""
Fraction = Annotated[float, PROBABILITY]


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(DenseConfig):
    """Configuration of a detector."""

    image_size: ClassVar[tuple[int, int]] = (800, 1333)
    kind: Annotated[str, OneOf(KINDS)] = "retinanet"
    """`retinanet`, `faster_rcnn` or `mask_rcnn`."""
    num_classes: Count = 80
    """Number of classes, without the background."""
    fpn_dim: Count = 256
    """Channels of the feature pyramid."""
    head_dim: Count | None = None
    """Channels of the heads' convolutions; `fpn_dim` by default."""
    box_fc_dim: Count = 1024
    """Channels of the box head (`faster_rcnn`, `mask_rcnn`)."""
    anchor_scale: Annotated[float, POSITIVE] | None = None
    """Side of the smallest anchors, in strides; by default 4 for `retinanet`, 8 for the others."""
    score_threshold: Fraction = 0.05
    """Detections score more than this."""
    nms_threshold: Fraction = 0.5
    """IoU above which the worse of two boxes of a class is removed."""
    max_detections: Count = 100
    """Detections per image, at most."""
    rpn_pre_nms_topk: Count = 1000
    """Best candidates of each pyramid level that enter NMS at inference; for `retinanet`, too."""
    rpn_pre_nms_topk_train: Count = 2000
    """The same in training, where only the RPN has candidates."""
    rpn_post_nms_topk: Count = 1000
    """Proposals per image that enter the second stage, at most."""
    rpn_nms_threshold: Fraction = 0.7
    """IoU above which the worse of two proposals of a level is removed."""
    rpn_batch_size: Count = 256
    """Anchors per image that the RPN is trained on."""
    rpn_positive_fraction: Fraction = 0.5
    """Largest fraction of positives among them."""
    roi_batch_size: Count = 512
    """Proposals per image that the second stage is trained on."""
    roi_positive_fraction: Fraction = 0.25
    """Largest fraction of positives among them."""

    @property
    def head_channels(self) -> int:
        """`head_dim` with its default."""
        return self.head_dim or self.fpn_dim

    @property
    def anchor_size(self) -> float:
        """`anchor_scale` with its default."""
        return self.anchor_scale or (4.0 if self.kind == "retinanet" else 8.0)

    @property
    def classifier(self) -> str:
        """Name of the layer with a score for each class."""
        retinanet = self.kind == "retinanet"
        return "head.classification_head.cls_logits" if retinanet else "box_predictor.cls_score"

    @property
    def has_masks(self) -> bool:
        """Whether detections have masks."""
        return self.kind == "mask_rcnn"
