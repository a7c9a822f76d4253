"""torchvision's RetinaNet on this library's backbones."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from metaformer.detection.config import DetectorConfig
from metaformer.detection.results import Detections, Size, Targets
from metaformer.detection.torchvision_compat import RATIOS, TorchvisionDetector, in_float32, named, told
from metaformer.errors import ConfigError


class AnchoredMaps(NamedTuple):
    """What torchvision's RetinaNet says of each level's anchors."""

    logits: tuple[Tensor, ...]
    """(B, H_i·W_i·9, num_classes)."""
    deltas: tuple[Tensor, ...]
    """(B, H_i·W_i·9, 4)."""
    anchors: tuple[Tensor, ...]
    """(H_i·W_i·9, 4): here they depend on the padded batch's size."""


class TorchvisionRetinaNet(TorchvisionDetector):
    """torchvision's RetinaNet; see `Detector`.

    Raises:
        ConfigError: `head_dim`, which its head does not have.
    """

    def __init__(self, config: DetectorConfig, backbone: nn.Module | None = None) -> None:
        super().__init__(config, backbone)
        if config.head_channels != config.fpn_dim:
            raise ConfigError(
                f"head_dim: {config.head_dim} is not fpn_dim, {config.fpn_dim}, whose channels the head of "
                "torchvision's RetinaNet has: leave head_dim out, or take compat='mmdet'"
            )
        sides = [stride * config.anchor_size for stride in self.strides]
        sizes = tuple((side, int(side * 2 ** (1 / 3)), int(side * 2 ** (2 / 3))) for side in sides)
        whole = RetinaNet(
            self.stand_in(),
            config.num_classes,
            anchor_generator=AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
            score_thresh=config.score_threshold,
            nms_thresh=config.nms_threshold,
            detections_per_img=config.max_detections,
            topk_candidates=config.nms_candidates,
        )
        self.head = whole.head
        self.head.register_forward_hook(in_float32)
        self._whole = (whole,)  # in a tuple, so that its parameters are not counted twice

    def raw(self, x: Tensor) -> AnchoredMaps:
        """Map images (B, 3, H, W) to what the head says of each anchor."""
        outputs, anchors, counts = self._outputs(x)
        return AnchoredMaps(
            outputs["cls_logits"].split(counts, 1),
            outputs["bbox_regression"].split(counts, 1),
            anchors.split(counts),
        )

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def decode(
        self, raw: AnchoredMaps, image_sizes: Sequence[Size], original_sizes: Sequence[Size] | None = None
    ) -> list[Detections]:
        found = self._whole[0].postprocess_detections(
            {"cls_logits": raw.logits, "bbox_regression": raw.deltas},
            [list(raw.anchors)] * len(image_sizes),
            list(image_sizes),
        )
        return told(found, image_sizes, original_sizes)

    def parts(self, x: Tensor, targets: Sequence[Targets], image_sizes: Sequence[Size]) -> dict[str, Tensor]:
        """Losses of classes and boxes, each the mean over the pictures."""
        outputs, anchors, _ = self._outputs(x)
        return self._losses(outputs, anchors, targets)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _losses(
        self, outputs: dict[str, Tensor], anchors: Tensor, targets: Sequence[Targets]
    ) -> dict[str, Tensor]:
        asked = [{"boxes": one.boxes, "labels": one.labels} for one in targets]
        return named(self._whole[0].compute_loss(asked, outputs, [anchors] * len(targets)))

    def _outputs(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor, list[int]]:
        maps = self.pyramid(x)
        generator = self._whole[0].anchor_generator
        count = generator.num_anchors_per_location()[0]
        counts = [level.shape[2] * level.shape[3] * count for level in maps]
        return self.head(maps), self.all_anchors(x, maps, generator), counts
