"""Backbone, neck and head: classes of pixels."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from metaformer.errors import ConfigError
from metaformer.models.base import DenseNetwork
from metaformer.models.segmentation.config import SegmenterConfig
from metaformer.models.segmentation.fcn import FCNHead
from metaformer.models.segmentation.fpn import FeaturePyramid
from metaformer.models.segmentation.fused_fpn import FusedSemanticFPN, fits
from metaformer.models.segmentation.layers import resize
from metaformer.models.segmentation.loss import SegmentationLoss
from metaformer.models.segmentation.semantic_fpn import SemanticFPNHead
from metaformer.models.segmentation.upernet import UperNetHead

Size = tuple[int, int]
AUXILIARY_LEVEL, AUXILIARY_DIM = 2, 256
"""The map that the auxiliary head looks at, and its channels."""


class Segmenter(DenseNetwork):
    """Tell the class of every pixel; everything about it is in `config`.

    Args:
        config: kind, backbone and sizes.
        criterion: the loss; cross-entropy over the pixels that count when not given.
        backbone: a module that gives a list of maps, finest first, and whose `feature_info.channels()` tells
            their channels, in place of `config.backbone`.

    Raises:
        ConfigError: no backbone, or a module that does not say what it gives.
    """

    def __init__(
        self,
        config: SegmenterConfig,
        criterion: SegmentationLoss | None = None,
        backbone: nn.Module | None = None,
    ) -> None:
        super().__init__(config.backbone, backbone)
        self.config = config
        self.num_classes = config.num_classes
        self.criterion = criterion or SegmentationLoss()
        channels, reductions = self.levels()
        dim, classes, dropout = config.head_channels, config.num_classes, config.dropout
        self.neck: FeaturePyramid | None = None
        self.head: SemanticFPNHead | UperNetHead
        if config.kind == "semantic_fpn":
            self.neck = FeaturePyramid(channels, config.fpn_dim)
            self.head = SemanticFPNHead(config.fpn_dim, reductions, dim, classes, dropout)
        else:
            self.head = UperNetHead(channels, dim, classes, dropout)
        self._fused: FusedSemanticFPN | None = None
        self.auxiliary: FCNHead | None = None
        if config.auxiliary:
            level = min(AUXILIARY_LEVEL, len(channels) - 1)
            self.auxiliary = FCNHead(channels[level], AUXILIARY_DIM, classes, dropout)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Any:
        """Map images (B, 3, H, W) to logits (B, num_classes, H, W); with label maps (B, H, W) to losses."""
        if targets is not None:
            return self.losses(x, targets)
        return resize(self.raw(x), (x.shape[2], x.shape[3]))

    def raw(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, num_classes, h, w) at the size of the finest map."""
        return self._logits(self.backbone(x))

    def losses(self, x: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Losses of images (B, 3, H, W) with label maps (B, H, W); `loss` is what is minimized.

        Raises:
            ConfigError: images and label maps do not fit each other.
        """
        if targets.ndim != 3 or targets.shape[0] != x.shape[0]:
            raise ConfigError(
                f"targets: {tuple(targets.shape)} are no label maps (B, H, W) of {len(x)} images"
            )
        maps, size = self.backbone(x), (targets.shape[1], targets.shape[2])
        logits = resize(self._logits(maps).float(), size)
        if self.auxiliary is None or not self.training:
            return self.criterion(logits, targets)
        beside = self.auxiliary(maps[min(AUXILIARY_LEVEL, len(maps) - 1)])
        return self.criterion(logits, targets, resize(beside.float(), size))

    def decode(
        self,
        raw: Tensor,
        image_sizes: Sequence[Size],
        original_sizes: Sequence[Size] | None = None,
        *,
        input_size: Size | None = None,
    ) -> list[Tensor]:
        """Turn logits into label maps (H, W), one per image.

        Args:
            raw: what `raw` gave.
            image_sizes: height and width of each image inside the padded batch.
            original_sizes: height and width of the label maps; those of the images when not given.
            input_size: height and width of the padded batch; those of its largest image when not given.
        """
        padded = input_size or (
            max(height for height, _ in image_sizes),
            max(width for _, width in image_sizes),
        )
        maps = []
        for logits, image, original in zip(raw, image_sizes, original_sizes or image_sizes, strict=True):
            whole = resize(logits[None].float(), padded)[..., : image[0], : image[1]]
            maps.append(resize(whole, original)[0].argmax(0))
        return maps

    def _logits(self, maps: Sequence[Tensor]) -> Tensor:
        neck, head = self.neck, self.head
        if neck is None or not isinstance(head, SemanticFPNHead):
            return head(maps)
        if not fits(neck, head, maps):
            return head(neck(maps))
        if self._fused is None or not self._fused.current(neck, head):
            self._fused = FusedSemanticFPN(neck, head)
        return head.classifier(self._fused.features(maps))
