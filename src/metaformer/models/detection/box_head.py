"""The second stage: classes and finer boxes of pooled regions."""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import TwoMLPHead


class BoxHead(TwoMLPHead):
    """torchvision's two layers, begun as mmdetection begins them.

    Args:
        in_dim: channels of the pooled features.
        side: positions on each side of them.
        dim: outputs.
    """

    def __init__(self, in_dim: int, side: int, dim: int) -> None:
        super().__init__(in_dim * side**2, dim)
        for layer in (self.fc6, self.fc7):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class BoxPredictor(nn.Module):
    """Logits of the classes and of the background, which is last, and one box's deltas per class.

    Args:
        in_dim: inputs.
        num_classes: classes, without the background.
    """

    def __init__(self, in_dim: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(in_dim, num_classes + 1)
        self.bbox_pred = nn.Linear(in_dim, num_classes * 4)
        for layer, std in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map (N, in_dim) to logits (N, num_classes + 1) and deltas (N, num_classes, 4), in float32."""
        return self.cls_score(x).float(), self.bbox_pred(x).float().unflatten(1, (-1, 4))


def box_losses(logits: Tensor, deltas: Tensor, labels: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of the classes and of the boxes, each divided by the sampled regions.

    Args:
        logits: (N, num_classes + 1).
        deltas: (N, num_classes, 4).
        labels: (N,); num_classes for the background.
        wanted: (P, 4), deltas of the P regions that are an object's, in their order.
    """
    divisor = max(1, len(labels))
    classes = F.cross_entropy(logits, labels, reduction="sum") / divisor
    objects = (labels < deltas.shape[1]).nonzero()[:, 0]
    boxes = F.l1_loss(deltas[objects, labels[objects]], wanted, reduction="sum") / divisor
    return classes, boxes


def candidates(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Regions, labels and scores (M,) of all pairs of a region and a class with a score above a threshold."""
    scores = logits.softmax(-1)[:, :-1]
    regions, labels = (scores > threshold).nonzero(as_tuple=True)
    return regions, labels, scores[regions, labels]
