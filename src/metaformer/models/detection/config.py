"""A detector as data."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from metaformer.backbones.config import MetaFormerConfig
from metaformer.errors import ConfigError, UnknownName
from metaformer.models.base import DenseConfig

KINDS = ("retinanet", "faster_rcnn", "mask_rcnn")
"""https://arxiv.org/abs/1708.02002, https://arxiv.org/abs/1506.01497 and https://arxiv.org/abs/1703.06870."""
_OPTIONAL = ("head_dim", "anchor_scale")
_SHARES = ("score_threshold", "nms_threshold", "rpn_nms_threshold", "rpn_positive", "box_positive")
_OTHERS = ("kind", "backbone", "anchor_scale", *_SHARES)


@dataclass(frozen=True, kw_only=True)
class DetectorConfig(DenseConfig):
    """Everything that defines a detector."""

    image_size: ClassVar[tuple[int, int]] = (800, 1333)
    kind: str = "retinanet"
    """`retinanet`, `faster_rcnn` or `mask_rcnn`."""
    num_classes: int = 80
    """Classes that an object may be of."""
    fpn_dim: int = 256
    """Channels of the feature pyramid."""
    head_dim: int | None = None
    """Channels of the heads' convolutions; `fpn_dim` when not given."""
    box_fc_dim: int = 1024
    """Channels of the two-stage networks' box head."""
    anchor_scale: float | None = None
    """Side of the (smallest) anchors in strides; 4 for `retinanet`, 8 for the others when not given."""
    score_threshold: float = 0.05
    """Results are more probable than this."""
    nms_threshold: float = 0.5
    """Of two boxes of a class with a greater IoU the worse one is left out."""
    max_detections: int = 100
    """Results of one image at most."""
    rpn_pre_nms_topk: int = 1000
    """Boxes of each level, the best, that are looked at when results are made."""
    rpn_pre_nms_topk_train: int = 2000
    """The same for the proposals of a training step."""
    proposals: int = 1000
    """Boxes of an image that a second stage looks at."""
    rpn_nms_threshold: float = 0.7
    """Of two proposals of a level with a greater IoU the worse one is left out."""
    rpn_samples: int = 256
    """Anchors of an image from which proposals are learned."""
    rpn_positive: float = 0.5
    """Largest share of anchors with an object in them."""
    roi_batch_size: int = 512
    """Proposals of an image from which boxes are learned."""
    box_positive: float = 0.25
    """Largest share of proposals with an object in them."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UnknownName("kind of detector", self.kind, KINDS)
        if not isinstance(self.backbone, MetaFormerConfig | None):
            raise ConfigError(f"backbone: {self.backbone!r} must be a MetaFormerConfig")
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _OTHERS or (value is None and field.name in _OPTIONAL):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ConfigError(f"{field.name}: {value!r} must be a whole number of at least 1")
        for name in _SHARES:
            if not _is_number(getattr(self, name)) or not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)!r} must be a number from 0 to 1")
        if self.anchor_scale is not None and not (_is_number(self.anchor_scale) and self.anchor_scale > 0):
            raise ConfigError(f"anchor_scale: {self.anchor_scale!r} must be a number above 0")

    @property
    def head_channels(self) -> int:
        """Channels of the convolutions in the heads, whether given or not."""
        return self.head_dim or self.fpn_dim

    @property
    def anchor_size(self) -> float:
        """Side of the (smallest) anchors in strides, whether given or not."""
        return self.anchor_scale or (4.0 if self.kind == "retinanet" else 8.0)

    @property
    def classifier(self) -> str:
        """Name of the layer with a score for each class."""
        retinanet = self.kind == "retinanet"
        return "head.classification_head.cls_logits" if retinanet else "box_predictor.cls_score"

    @property
    def has_masks(self) -> bool:
        """Whether results come with masks."""
        return self.kind == "mask_rcnn"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
