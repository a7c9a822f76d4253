"""Segmentation network: backbone, neck and head."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from metaformer.errors import ConfigError
from metaformer.layers.init import init_by_name, init_part
from metaformer.models.base import DenseNetwork, Size
from metaformer.models.fpn import FeaturePyramid
from metaformer.models.segmentation.config import SegmenterConfig
from metaformer.models.segmentation.layers import FCNHead, resize
from metaformer.models.segmentation.loss import SegmentationLoss
from metaformer.models.segmentation.semantic_fpn import SemanticFPNHead
from metaformer.models.segmentation.upernet import UperNetHead

AUXILIARY_LEVEL, AUXILIARY_DIM = 2, 256
"""Feature level of the auxiliary head, and its channels."""


class Segmenter(DenseNetwork):
    """Semantic segmentation network.

    Args:
        config: kind, backbone and sizes.
        criterion: the loss; cross-entropy over the labeled pixels by default.
        backbone: a module that returns a list of features, finest first, with `feature_info.channels()`; used
            in place of `config.backbone`.

    Raises:
        ConfigError: no backbone, or a module without `feature_info`.
    """

    @init_by_name
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
        self.head: nn.Module
        if config.kind == "semantic_fpn":
            self.neck = init_part("neck", FeaturePyramid, channels, config.fpn_dim)
            shape = (config.fpn_dim, reductions, dim, classes, dropout)
            self.head = init_part("head", SemanticFPNHead, *shape)
        else:
            self.head = init_part("head", UperNetHead, channels, dim, classes, dropout)
        self.auxiliary: FCNHead | None = None
        if config.auxiliary:
            level = min(AUXILIARY_LEVEL, len(channels) - 1)
            channel = channels[level]
            self.auxiliary = init_part("auxiliary", FCNHead, channel, AUXILIARY_DIM, classes, dropout)

    def forward(self, x: Tensor, targets: Tensor | None = None) -> Any:
        """Map images (B, 3, H, W) to logits (B, K, H, W); with label maps (B, H, W), to losses."""
        if targets is not None:
            return self.compute_losses(x, targets)
        return resize(self.forward_head(x), (x.shape[2], x.shape[3]))

    def forward_head(self, x: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to logits (B, K, h, w) at the stride of the finest features, 4."""
        return self._logits(self.backbone(x))

    def predict(
        self,
        x: Tensor,
        image_sizes: Sequence[Size] | None = None,
        original_sizes: Sequence[Size] | None = None,
    ) -> list[Tensor]:
        """Map images (B, 3, H, W) to label maps, one per image; see `decode`."""
        size = (x.shape[2], x.shape[3])
        image_sizes = [size] * len(x) if image_sizes is None else image_sizes
        return self.decode(self.forward_head(x), image_sizes, original_sizes, input_size=size)

    def decode(
        self,
        outputs: Tensor,
        image_sizes: Sequence[Size],
        original_sizes: Sequence[Size] | None = None,
        *,
        input_size: Size | None = None,
    ) -> list[Tensor]:
        """Turn logits into label maps, one (H, W) per image.

        Args:
            outputs: logits (B, K, h, w) of `forward_head`.
            image_sizes: height and width of each image inside the padded batch.
            original_sizes: height and width of each label map; `image_sizes` by default.
            input_size: height and width of the padded batch; the largest of `image_sizes` by default.
        """
        heights, widths = zip(*image_sizes, strict=True)
        padded = input_size or (max(heights), max(widths))
        label_maps = []
        for logits, image, original in zip(outputs, image_sizes, original_sizes or image_sizes, strict=True):
            unpadded = resize(logits[None].float(), padded)[..., : image[0], : image[1]]
            label_maps.append(resize(unpadded, original)[0].argmax(0))
        return label_maps

    def compute_losses(self, x: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Compute the losses of images (B, 3, H, W) with label maps (B, H, W); `loss` is the total.

        Raises:
            ConfigError: images and label maps do not match in number or dimensions.
        """
        if targets.ndim != 3 or targets.shape[0] != x.shape[0]:
            raise ConfigError(
                f"targets: shape {tuple(targets.shape)} must be (B, H, W) with B = {len(x)}, as of the images"
            )
        features, size = self.backbone(x), (targets.shape[1], targets.shape[2])
        logits = resize(self._logits(features).float(), size)
        if self.auxiliary is None or not self.training:
            return self.criterion(logits, targets)
        auxiliary = self.auxiliary(features[min(AUXILIARY_LEVEL, len(features) - 1)])
        return self.criterion(logits, targets, resize(auxiliary.float(), size))

    def _logits(self, features: Sequence[Tensor]) -> Tensor:
        return self.head(features if self.neck is None else self.neck(features))
