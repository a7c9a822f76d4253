"""torchvision's own detectors on this library's backbones, for whoever compares with theirs.

Everything behind the pyramid is torchvision's code: anchors, matching, losses, suppression. Pictures come
resized and normalised, labels begin at 0, and losses have the names of the other detectors.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from metaformer.detection.coder import rescale
from metaformer.detection.config import DetectorConfig
from metaformer.detection.detector import Detector
from metaformer.detection.results import Detections, Size

PARTS = {
    "classification": "loss_cls",
    "bbox_regression": "loss_bbox",
    "loss_objectness": "loss_rpn_cls",
    "loss_rpn_box_reg": "loss_rpn_bbox",
    "loss_classifier": "loss_cls",
    "loss_box_reg": "loss_bbox",
    "loss_mask": "loss_mask",
}
"""What the losses are called there and here."""
RATIOS = (0.5, 1.0, 2.0)


def build(config: DetectorConfig, backbone: nn.Module | None = None) -> Detector:
    """The detector of a configuration with compat="torchvision"; see `Detector`."""
    from metaformer.detection.torchvision_rcnn import TorchvisionRCNN
    from metaformer.detection.torchvision_retinanet import TorchvisionRetinaNet

    return (TorchvisionRetinaNet if config.kind == "retinanet" else TorchvisionRCNN)(config, backbone)


class TorchvisionDetector(Detector):
    """What the two have in common."""

    def __init__(self, config: DetectorConfig, backbone: nn.Module | None = None) -> None:
        super().__init__(config, backbone)
        for conv in self.neck.modules():
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_uniform_(conv.weight, a=1)  # as torchvision begins its pyramid

    def stand_in(self) -> nn.Module:
        """What torchvision's classes are given for a backbone: they ask it for nothing but its channels."""
        module = nn.Identity()
        module.out_channels = self.config.fpn_dim  # type: ignore[assignment]
        return module

    def pyramid(self, x: Tensor) -> list[Tensor]:
        """Levels in float32: the anchors have the type of the maps there."""
        return [level.float() for level in self.maps(x)]

    def all_anchors(self, x: Tensor, maps: list[Tensor], generator: AnchorGenerator) -> Tensor:
        """Anchors (N, 4) of all levels; there the padded batch's size decides where they lie."""
        anchors: Tensor = generator(ImageList(x, [(x.shape[2], x.shape[3])]), maps)[0]
        return anchors


def named(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses by the names that they have here."""
    return {PARTS[name]: loss for name, loss in losses.items()}


def told(
    found: Sequence[dict[str, Tensor]], sizes: Sequence[Size], originals: Sequence[Size] | None
) -> list[Detections]:
    """Results, of boxes in pixels of pictures of the original sizes."""
    return [
        Detections(
            rescale(one["boxes"], size, original),
            one["scores"],
            one["labels"],
            one["masks"][:, 0] if "masks" in one else None,
        )
        for one, size, original in zip(found, sizes, originals or sizes, strict=True)
    ]


def in_float32(module: nn.Module, inputs: Any, outputs: Any) -> Any:
    """Lift what a head gave to the type that boxes, losses and suppression need; a forward hook."""
    if isinstance(outputs, Tensor):
        return outputs.float()
    if isinstance(outputs, dict):
        return {name: in_float32(module, inputs, value) for name, value in outputs.items()}
    return type(outputs)(in_float32(module, inputs, value) for value in outputs)
