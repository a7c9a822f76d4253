"""Segmenters and detectors: ours, and other libraries' that do the same work.

Both Mask R-CNNs have one backbone, ours, and the same weights. Scores of random weights would leave no
detections; those of the classes are spread as a trained network's are, so that each side takes 1000 proposals
of an image and gives 100 detections. Masks stay as the heads give them, 28×28.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from metaformer.errors import ConfigError
from metaformer.factory import create_detector, create_segmenter, is_detector, is_segmenter
from metaformer.models.build import SEGMENTER
from metaformer.models.detection.rcnn import BOX_ROI_SIDE

LOGITS_STD: Final = 3.0
"""Standard deviation of a proposal's class logits."""
CLASSES, DETECTIONS = 80, 100
HEADS: Final = ("rpn.", "box_head.", "box_predictor.", "mask_head.", "mask_predictor.")
"""Parts of our detector with weights beside backbone and neck."""


def is_dense(model: str) -> bool:
    """Whether a name is that of a segmenter or detector."""
    return is_segmenter(model) or is_detector(model)


def ours(model: str) -> nn.Module:
    """This library's network, without norms between backbone and neck, which others do not have."""
    if is_segmenter(model):
        return create_segmenter(model, feature_norm="none")
    return create_detector(model, num_classes=CLASSES, feature_norm="none", max_detections=DETECTIONS)


@torch.no_grad()
def spread_scores(network: Any) -> None:
    """Scale the class scores of a network that has a box head so that their logits have `LOGITS_STD`."""
    if not hasattr(network, "box_predictor"):
        return
    images = torch.randn(1, 3, 256, 256)
    levels = network.features(images)
    windows = levels[0].unfold(2, BOX_ROI_SIDE, BOX_ROI_SIDE).unfold(3, BOX_ROI_SIDE, BOX_ROI_SIDE)
    logits, _ = network.box_predictor(network.box_head(windows.permute(0, 2, 3, 1, 4, 5).flatten(0, 2)))
    layer = network.box_predictor.cls_score
    layer.weight.mul_(LOGITS_STD / (logits - layer.bias).std())


def smp(model: str) -> nn.Module:
    """segmentation_models_pytorch's FPN on timm's backbone: no convolution after the pyramid's sums.

    Raises:
        ConfigError: the package is missing, or has no such network.
    """
    try:
        import segmentation_models_pytorch
    except ImportError as error:
        message = "segmentation_models_pytorch is not installed: pip install segmentation-models-pytorch"
        raise ConfigError(message) from error
    head, backbone = split(model)
    if head != "semantic_fpn":
        raise ConfigError(f"segmentation_models_pytorch has no {model}")
    network: nn.Module = segmentation_models_pytorch.FPN(f"tu-{backbone}", encoder_weights=None, classes=150)
    return network


def smp_published(model: str) -> nn.Module:
    """The same with the 3×3 convolutions that the paper and we have after the pyramid's sums."""
    network: Any = smp(model)
    decoder = network.decoder
    for block in decoder.seg_blocks:
        channels = next(block.parameters()).shape[1]
        block.block.insert(0, nn.Conv2d(channels, channels, 3, padding=1))
    return network


def torchvision(network: Any) -> nn.Module:
    """Torchvision's Mask R-CNN of the backbone and the weights of ours."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    if getattr(network, "mask_predictor", None) is None:
        raise ConfigError(f"torchvision: {type(network).__name__} is no Mask R-CNN")
    pyramid = _Pyramid(network.backbone, network.neck)
    anchors = AnchorGenerator(tuple((8 * n,) for n in network.strides), ((0.5, 1.0, 2.0),) * 5)
    with torch.device("meta"):  # its weights come from ours
        theirs = MaskRCNN(
            pyramid,
            CLASSES + 1,
            rpn_anchor_generator=anchors,
            box_detections_per_img=DETECTIONS,
        )
    theirs.transform = _Unchanged()
    theirs.load_state_dict({**theirs.state_dict(), **_torchvision_state(network)}, assign=True)
    return _Batch(theirs)


def split(model: str) -> tuple[str, str]:
    """A network's kind and its backbone, such as `semantic_fpn` and `poolformer_s12`."""
    head = next((head for head in SEGMENTER.heads if model.startswith(f"{head}_")), "")
    return head, model.removeprefix(f"{head}_")


def scores(detections: Sequence[Any]) -> Tensor:
    """Scores of each image's detections (B, N), best first, by which forms of a network are compared.

    Raises:
        ConfigError: an image has another number of detections than `DETECTIONS`.
    """
    found = [each["scores"] if isinstance(each, dict) else each.scores for each in detections]
    for each in found:
        if len(each) != DETECTIONS:
            raise ConfigError(f"{len(each)} detections instead of {DETECTIONS}: not the work of its row")
    return torch.stack(found).sort(descending=True).values


def _torchvision_state(network: Any) -> dict[str, Tensor]:
    """Weights of our heads by torchvision's names; its first class is the background, with boxes too."""
    state = {name: value for name, value in network.state_dict().items() if name.startswith(HEADS)}
    state = {name if name.startswith("rpn") else f"roi_heads.{name}": value for name, value in state.items()}
    for name, value in state.items():
        if "cls_score" in name:
            state[name] = value.roll(1, 0)
        elif "roi_heads.box_predictor.bbox_pred" in name:
            state[name] = torch.cat([torch.zeros_like(value[:4]), value])
        elif "mask_fcn_logits" in name:
            state[name] = torch.cat([torch.zeros_like(value[:1]), value])
    return state


class _Pyramid(nn.Module):
    """A backbone and torchvision's pyramid, with the weights of our neck."""

    def __init__(self, backbone: Any, neck: Any) -> None:
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork
        from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

        dims = [conv.in_channels for conv in neck.laterals]
        self.out_channels = neck.laterals[0].out_channels
        self.backbone = backbone
        self.fpn = FeaturePyramidNetwork(dims, self.out_channels, LastLevelMaxPool())
        for theirs, convs in ((self.fpn.inner_blocks, neck.laterals), (self.fpn.layer_blocks, neck.outputs)):
            for block, conv in zip(theirs, convs, strict=True):
                block[0].load_state_dict(conv.state_dict())

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        features = self.backbone(images)
        levels: dict[str, Tensor] = self.fpn(OrderedDict((str(i), x) for i, x in enumerate(features)))
        return levels


class _Batch(nn.Module):
    """torchvision's network, which takes a list of images, on a batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = self.network(list(images))
        return found


class _Unchanged(nn.Module):
    """In place of torchvision's transform: images and masks stay as they are."""

    def forward(self, images: list[Tensor], targets: None = None) -> tuple[Any, None]:
        from torchvision.models.detection.image_list import ImageList

        sizes = [(image.shape[1], image.shape[2]) for image in images]
        return ImageList(torch.stack(images), sizes), targets

    def postprocess(self, result: Any, image_sizes: Any, original_sizes: Any) -> Any:
        return result
