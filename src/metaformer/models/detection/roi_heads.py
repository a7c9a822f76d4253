"""Second stage of R-CNN: RoI align, box head and mask head, with their losses."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.errors import ConfigError
from metaformer.models.detection.heads import ConvTower
from metaformer.models.detection.structures import Targets

FINEST_SIDE = 56
"""Boxes of less than twice this side, in pixels, are pooled from the finest level; and so on by octaves."""
MASK_SIDE = 28
BITMAPS_AT_ONCE = 16
"""Object masks that are converted to float at once: 68 MB at 800×1333 pixels."""


def assign_levels(boxes: Tensor, count: int) -> Tensor:
    """Pyramid level (N,) of each box (N, 4), https://arxiv.org/abs/1612.03144, equation 1."""
    side = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    return torch.floor(torch.log2(side / FINEST_SIDE + 1e-6)).clamp(0, count - 1).long()


def to_rois(boxes: Sequence[Tensor]) -> Tensor:
    """Join the boxes (N_i, 4) of each image to (N, 5), the image's index first."""
    images = torch.cat([one.new_full((len(one), 1), i) for i, one in enumerate(boxes)])
    return torch.cat([images, torch.cat(list(boxes))], dim=1)


def pyramid_roi_align(
    features: Sequence[Tensor], boxes: Sequence[Tensor], strides: Sequence[int], side: int
) -> Tensor:
    """RoI align of each box on the pyramid level of its size.

    Args:
        features: levels (B, C, H_i, W_i), finest first.
        boxes: (N_i, 4) of each image, in pixels of the input.
        strides: pixels of the input per cell of each level.
        side: height and width of the output.

    Returns:
        Features (N, C, side, side), float32, in the order of the boxes.
    """
    from torchvision.ops import roi_align

    rois = to_rois(boxes)
    levels = assign_levels(rois[:, 1:], len(features))
    order = levels.argsort(stable=True)
    counts = torch.bincount(levels, minlength=len(features)).tolist()
    # Every level takes part, if only with no box, so that its parameters get a gradient on every rank.
    pooled = [
        # float32: in half precision coordinates would be off by whole pixels
        roi_align(level.float(), chosen, side, 1 / stride, sampling_ratio=0, aligned=True)
        for level, chosen, stride in zip(features, rois[order].split(counts), strides, strict=True)
    ]
    return torch.cat(pooled)[order.argsort()]


class BoxHead(nn.Module):
    """Two linear layers on flattened RoI features, initialized as in mmdetection.

    Args:
        in_dim: channels of the RoI features.
        side: their height and width.
        dim: outputs.
    """

    def __init__(self, in_dim: int, side: int, dim: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(in_dim * side**2, dim)
        self.fc7 = nn.Linear(dim, dim)
        for layer in (self.fc6, self.fc7):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_dim, side, side) to (N, dim)."""
        return F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))


class BoxPredictor(nn.Module):
    """Class logits, the background last, and box deltas for each class.

    Args:
        in_dim: inputs.
        num_classes: number of classes without the background.
    """

    def __init__(self, in_dim: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_dim, num_classes + 1)
        self.bbox_pred = nn.Linear(in_dim, num_classes * 4)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, in_dim) to logits (N, K + 1) and deltas (N, K, 4), float32."""
        return self.cls_score(x).float(), self.bbox_pred(x).float().unflatten(1, (-1, 4))


def box_losses(
    logits: Tensor, deltas: Tensor, labels: Tensor, target_deltas: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the classes and L1 of the deltas, each divided by the number of sampled regions.

    Args:
        logits: (N, K + 1).
        deltas: (N, K, 4).
        labels: (N,); K for the background.
        target_deltas: (P, 4) of the P regions with an object, in their order.
    """
    divisor = max(1, len(labels))
    loss_cls = F.cross_entropy(logits, labels, reduction="sum") / divisor
    positives = (labels < deltas.shape[1]).nonzero()[:, 0]
    loss_bbox = F.l1_loss(deltas[positives, labels[positives]], target_deltas, reduction="sum") / divisor
    return loss_cls, loss_bbox


def score_candidates(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of regions, labels and scores (M,) of all pairs of region and class above the threshold."""
    scores = logits.softmax(-1)[:, :-1]
    regions, labels = (scores > threshold).nonzero(as_tuple=True)
    return regions, labels, scores[regions, labels]


class MaskHead(ConvTower):
    """Four 3×3 convolutions on RoI features of 14×14.

    Args:
        in_dim: channels of the RoI features.
        dim: channels of the convolutions.
    """

    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__(in_dim, dim, 4)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


class MaskPredictor(nn.Module):
    """Upsampling to 28×28 and one mask for each class.

    Args:
        dim: channels.
        num_classes: number of classes.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.conv5_mask = nn.ConvTranspose2d(dim, dim, 2, 2)
        self.mask_fcn_logits = nn.Conv2d(dim, num_classes, 1)
        for layer in (self.conv5_mask, self.mask_fcn_logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, dim, 14, 14) to mask logits (N, K, 28, 28)."""
        return self.mask_fcn_logits(F.relu(self.conv5_mask(x), inplace=True))

    def forward_class(self, x: Tensor, labels: Tensor) -> Tensor:
        """Map (N, dim, 14, 14) to the mask logits (N, 28, 28), float32, of the classes (N,)."""
        logits = self(x)
        return logits[torch.arange(len(labels), device=labels.device), labels].float()


def mask_targets(masks: Tensor, boxes: Tensor, objects: Tensor) -> Tensor:
    """Crop the mask of each region's object to the region.

    Args:
        masks: (G, H, W) of the objects, in the frame of the boxes.
        boxes: (N, 4) of the regions.
        objects: (N,), index of each region's object.

    Returns:
        (N, 28, 28) of 0 and 1.
    """
    from torchvision.ops import roi_align

    height, width = masks.shape[1:]
    clipped = boxes.clamp(min=0).minimum(boxes.new_tensor((width, height, width, height)))
    targets = boxes.new_zeros(len(boxes), MASK_SIDE, MASK_SIDE)
    for first in range(0, len(masks), BITMAPS_AT_ONCE):
        bitmaps = masks[first : first + BITMAPS_AT_ONCE, None].to(boxes.dtype)
        rows = ((objects >= first) & (objects < first + len(bitmaps))).nonzero()[:, 0]
        rois = torch.cat([(objects[rows] - first)[:, None].to(boxes.dtype), clipped[rows]], dim=1)
        crops = roi_align(bitmaps, rois, MASK_SIDE, sampling_ratio=0, aligned=True)[:, 0]
        targets[rows] = (crops >= 0.5).to(targets.dtype)
    return targets


def require_masks(target: Targets) -> Tensor:
    """Masks (G, H, W) of the objects to train on.

    Raises:
        ConfigError: there are none.
    """
    if target.masks is None:
        raise ConfigError(
            "targets: mask_rcnn is trained on masks, and there are none: open the data with masks=True, or "
            "train kind='faster_rcnn'"
        )
    return target.masks


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy of logits (N, 28, 28); zero without a region."""
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="sum") / max(1, targets.numel())
