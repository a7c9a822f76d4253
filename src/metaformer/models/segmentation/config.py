"""Configuration of segmentation networks."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from metaformer.backbones.config import Count, Rate
from metaformer.models.base import DenseConfig
from metaformer.serialize import OneOf

HEAD_DIMS = {"semantic_fpn": 128, "upernet": 512}
"""Published channels of each kind's head."""


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(DenseConfig):
    """Configuration of a `Segmenter`."""

    image_size: ClassVar[tuple[int, int]] = (512, 512)
    classifier: ClassVar[str] = "head.classifier"
    kind: Annotated[str, OneOf(tuple(HEAD_DIMS))] = "semantic_fpn"
    """`semantic_fpn` (https://arxiv.org/abs/1901.02446) or `upernet` (https://arxiv.org/abs/1807.10221)."""
    num_classes: Count = 150
    """Number of classes."""
    fpn_dim: Count = 256
    """Channels of the feature pyramid of `semantic_fpn`; `upernet` uses `head_dim`."""
    head_dim: Count | None = None
    """Channels of the head; by default 128 for `semantic_fpn` and 512 for `upernet`."""
    dropout: Rate = 0.1
    """Channel dropout before the classifier."""
    auxiliary: bool = False
    """Add an auxiliary FCN head on the third feature level, used in training only."""

    @property
    def head_channels(self) -> int:
        """`head_dim`, or the published channels of this kind."""
        return self.head_dim or HEAD_DIMS[self.kind]
