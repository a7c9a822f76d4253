"""Multi-label losses: binary cross-entropy and asymmetric loss."""

import torch.nn.functional as F
from torch import Tensor, nn


class BinaryCrossEntropy(nn.Module):
    """Binary cross-entropy of each class, averaged over images and classes.

    Args:
        pos_weight: (K,) weight of the loss where a class is present; None for 1.
    """

    pos_weight: Tensor | None

    def __init__(self, pos_weight: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of logits (B, K) against targets (B, K) of 0 and 1."""
        return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.pos_weight)


class AsymmetricLoss(nn.Module):
    """Asymmetric loss, https://arxiv.org/abs/2009.14119, summed over classes and averaged over images.

    With p = sigmoid(logit) and p_m = max(p - margin, 0) (equations 5 to 7):
    L+ = (1 - p)^gamma_pos log(p) where the class is present, L- = p_m^gamma_neg log(1 - p_m) where it is not.

    Args:
        gamma_pos: focusing of present classes.
        gamma_neg: focusing of absent ones: easy negatives count less.
        margin: probability below which absent classes count nothing.
        pos_weight: (K,) weight of L+; None for 1.
    """

    pos_weight: Tensor | None

    def __init__(
        self,
        gamma_pos: float = 0.0,
        gamma_neg: float = 4.0,
        margin: float = 0.05,
        pos_weight: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.gamma_pos, self.gamma_neg, self.margin = gamma_pos, gamma_neg, margin
        self.register_buffer("pos_weight", pos_weight)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of logits (B, K) against targets (B, K) of 0 and 1."""
        p = logits.sigmoid()
        positive = (1 - p) ** self.gamma_pos * F.logsigmoid(logits)
        if self.pos_weight is not None:
            positive = positive * self.pos_weight
        # 1 - p_m = min(1 - p + margin, 1): its logarithm is 0, and so is the gradient, where p <= margin
        inverse = (1 - p + self.margin).clamp(max=1)
        negative = (1 - inverse) ** self.gamma_neg * inverse.clamp(min=1e-8).log()
        return -(targets * positive + (1 - targets) * negative).sum(dim=1).mean()


def balanced_pos_weight(labels: Tensor, largest: float = 100.0) -> Tensor:
    """Absent by present images of each class, (K,), from labels (N, K): both sides then weigh the same.

    Args:
        labels: 0 or 1.
        largest: weight of a class that is rarer, and of one that no image has.
    """
    present = labels.sum(dim=0)
    return ((len(labels) - present) / present.clamp(min=1e-6)).clamp(max=largest)
