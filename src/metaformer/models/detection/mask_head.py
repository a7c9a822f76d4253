"""Masks of pooled regions, and what they are to be."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import roi_align

from metaformer.errors import ConfigError
from metaformer.models.detection.structures import Targets

MASK_SIDE = 28
BITMAPS_AT_ONCE = 16
"""Objects whose masks are held as floating-point numbers at a time: at 800×1333 pixels 68 MB."""


class MaskHead(MaskRCNNHeads):
    """torchvision's four convolutions, which keep the 14×14 positions.

    Args:
        in_dim: channels of the pooled features.
        dim: channels of the convolutions.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__(in_dim, (dim,) * 4, dilation=1)


class MaskPredictor(MaskRCNNPredictor):
    """torchvision's doubling to 28×28 positions, and a mask per class.

    Args:
        dim: channels.
        num_classes: masks, of which each region's class picks one.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__(dim, dim, num_classes)

    def own(self, x: Tensor, labels: Tensor) -> Tensor:
        """Map (N, dim, 14, 14) to logits (N, 28, 28), in float32, of the masks of the labels (N,)."""
        logits: Tensor = self(x)
        return logits[torch.arange(len(labels), device=labels.device), labels].float()


def mask_targets(masks: Tensor, boxes: Tensor, objects: Tensor) -> Tensor:
    """Cut out of each region the mask of its object.

    Args:
        masks: (G, H, W), in the frame of the boxes.
        boxes: (N, 4).
        objects: (N,), which mask belongs to each box.

    Returns:
        (N, 28, 28) of 0 and 1.
    """
    height, width = masks.shape[1:]
    inside = boxes.clamp(min=0).minimum(boxes.new_tensor((width, height, width, height)))
    found = boxes.new_zeros(len(boxes), MASK_SIDE, MASK_SIDE)
    for first in range(0, len(masks), BITMAPS_AT_ONCE):
        some = masks[first : first + BITMAPS_AT_ONCE, None].to(boxes.dtype)
        rows = ((objects >= first) & (objects < first + len(some))).nonzero()[:, 0]
        regions = torch.cat([(objects[rows] - first)[:, None].to(boxes.dtype), inside[rows]], dim=1)
        cut = roi_align(some, regions, MASK_SIDE, sampling_ratio=0, aligned=True)[:, 0]
        found[rows] = (cut >= 0.5).to(found.dtype)
    return found


def masks_of(target: Targets) -> Tensor:
    """The masks to learn from.

    Raises:
        ConfigError: there are none.
    """
    if target.masks is None:
        raise ConfigError(
            "targets: mask_rcnn learns from masks, and there are none: open the data with masks=True, "
            "or train kind='faster_rcnn'"
        )
    return target.masks


def mask_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Binary cross-entropy of logits (N, 28, 28), the mean over all; zero without a region."""
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / max(1, wanted.numel())
