"""Configuration of segmentation networks."""

from dataclasses import dataclass
from typing import Any, ClassVar

from metaformer.backbones.config import MetaFormerConfig
from metaformer.errors import ConfigError, UnknownName
from metaformer.models.base import DenseConfig

HEAD_DIMS = {"semantic_fpn": 128, "upernet": 512}
"""Published channels of each kind's head."""


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(DenseConfig):
    """Configuration of a `Segmenter`."""

    image_size: ClassVar[tuple[int, int]] = (512, 512)
    classifier: ClassVar[str] = "head.classifier"
    kind: str = "semantic_fpn"
    """`semantic_fpn` (https://arxiv.org/abs/1901.02446) or `upernet` (https://arxiv.org/abs/1807.10221)."""
    num_classes: int = 150
    """Number of classes."""
    fpn_dim: int = 256
    """Channels of the feature pyramid of `semantic_fpn`; `upernet` uses `head_dim`."""
    head_dim: int | None = None
    """Channels of the head; by default 128 for `semantic_fpn` and 512 for `upernet`."""
    dropout: float = 0.1
    """Channel dropout before the classifier."""
    auxiliary: bool = False
    """Add an auxiliary FCN head on the third feature level, used in training only."""

    def __post_init__(self) -> None:
        if self.kind not in HEAD_DIMS:
            raise UnknownName("kind of segmenter", self.kind, HEAD_DIMS)
        if not isinstance(self.backbone, MetaFormerConfig | None):
            raise ConfigError(f"backbone: {self.backbone!r} must be a MetaFormerConfig")
        for name in ("num_classes", "fpn_dim", "head_dim"):
            value = getattr(self, name)
            if (value is not None or name != "head_dim") and not _is_positive_int(value):
                raise ConfigError(f"{name}: {value!r} must be an integer of at least 1")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, int | float):
            raise ConfigError(f"dropout: {self.dropout!r} must be a number")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout: {self.dropout!r} must be at least 0 and below 1")
        if not isinstance(self.auxiliary, bool):
            raise ConfigError(f"auxiliary: {self.auxiliary!r} must be true or false")

    @property
    def head_channels(self) -> int:
        """`head_dim`, or the published channels of this kind."""
        return self.head_dim or HEAD_DIMS[self.kind]


def _is_positive_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
