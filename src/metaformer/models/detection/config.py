"""Configuration of a detector."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from metaformer.backbones.config import MetaFormerConfig
from metaformer.errors import ConfigError, UnknownName
from metaformer.models.base import DenseConfig

KINDS = ("retinanet", "faster_rcnn", "mask_rcnn")
"""https://arxiv.org/abs/1708.02002, https://arxiv.org/abs/1506.01497 and https://arxiv.org/abs/1703.06870."""
_OPTIONAL = ("head_dim", "anchor_scale")
_FRACTIONS = (
    "score_threshold", "nms_threshold", "rpn_nms_threshold", "rpn_positive_fraction", "roi_positive_fraction",
)  # fmt: skip
_NOT_COUNTS = ("kind", "backbone", "anchor_scale", *_FRACTIONS)


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(DenseConfig):
    """Configuration of a detector."""

    image_size: ClassVar[tuple[int, int]] = (800, 1333)
    kind: str = "retinanet"
    """`retinanet`, `faster_rcnn` or `mask_rcnn`."""
    num_classes: int = 80
    """Number of classes, without the background."""
    fpn_dim: int = 256
    """Channels of the feature pyramid."""
    head_dim: int | None = None
    """Channels of the heads' convolutions; `fpn_dim` by default."""
    box_fc_dim: int = 1024
    """Channels of the box head (`faster_rcnn`, `mask_rcnn`)."""
    anchor_scale: float | None = None
    """Side of the smallest anchors, in strides; by default 4 for `retinanet`, 8 for the others."""
    score_threshold: float = 0.05
    """Detections score more than this."""
    nms_threshold: float = 0.5
    """IoU above which the worse of two boxes of a class is removed."""
    max_detections: int = 100
    """Detections per image, at most."""
    rpn_pre_nms_topk: int = 1000
    """Best candidates of each pyramid level that enter NMS at inference; for `retinanet`, too."""
    rpn_pre_nms_topk_train: int = 2000
    """The same in training, where only the RPN has candidates."""
    rpn_post_nms_topk: int = 1000
    """Proposals per image that enter the second stage, at most."""
    rpn_nms_threshold: float = 0.7
    """IoU above which the worse of two proposals of a level is removed."""
    rpn_batch_size: int = 256
    """Anchors per image that the RPN is trained on."""
    rpn_positive_fraction: float = 0.5
    """Largest fraction of positives among them."""
    roi_batch_size: int = 512
    """Proposals per image that the second stage is trained on."""
    roi_positive_fraction: float = 0.25
    """Largest fraction of positives among them."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownName("kind of detector", self.kind, KINDS)
        if not isinstance(self.backbone, MetaFormerConfig | None):
            raise ConfigError(f"backbone: {self.backbone!r} must be a MetaFormerConfig")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _NOT_COUNTS or (value is None and field.name in _OPTIONAL):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{field.name}: {value!r} must be a whole number of at least 1")
        for name in _FRACTIONS:
            if not _is_number(getattr(self, name)) or not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)!r} must be a number from 0 to 1")
        if self.anchor_scale is not None and not (_is_number(self.anchor_scale) and self.anchor_scale > 0):
            raise ConfigError(f"anchor_scale: {self.anchor_scale!r} must be a number above 0")

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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
