"""Segmentation losses."""

from collections.abc import Sequence
from math import log
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.errors import ConfigError

Reduction = Literal["valid", "all"]


class SegmentationLoss(nn.Module):
    """Pixel-wise cross-entropy, optionally with OHEM, Dice loss and the auxiliary head's cross-entropy.

    A batch whose pixels are all ignored has a loss of zero.

    Args:
        ignore_index: label of pixels that do not count.
        reduction: divide by the number of labeled pixels (`valid`), or of all pixels (`all`), as
            mmsegmentation's published runs do.
        ohem: online hard example mining (https://arxiv.org/abs/1604.03540): only pixels whose true class has
            a probability below this count; None for all.
        min_kept: OHEM keeps at least this many pixels per image, those with the largest loss.
        dice: weight of the Dice loss (https://arxiv.org/abs/1606.04797), over the classes present.
        class_weights: weight of each class in the cross-entropy.
        auxiliary: weight of the auxiliary head's cross-entropy.

    Raises:
        ConfigError: a value out of range.
    """

    weights: Tensor | None

    def __init__(
        self,
        ignore_index: int = 255,
        reduction: Reduction = "valid",
        ohem: float | None = None,
        min_kept: int = 100_000,
        dice: float = 0.0,
        class_weights: Sequence[float] | None = None,
        auxiliary: float = 0.4,
    ) -> None:
        super().__init__()
        if reduction not in get_args(Reduction):
            raise ConfigError(f"reduction: {reduction!r} is unknown; choose one of {get_args(Reduction)}")
        if ohem is not None and not 0 < ohem < 1:
            raise ConfigError(f"ohem: {ohem!r} must be a probability above 0 and below 1")
        for name, value in (("min_kept", min_kept), ("dice", dice), ("auxiliary", auxiliary)):
            if value < 0:
                raise ConfigError(f"{name}: {value!r} must not be negative")
        if class_weights is not None and (not class_weights or min(class_weights) < 0):
            raise ConfigError("class_weights: must hold one non-negative number for each class")
        self.ignore_index, self.reduction = ignore_index, reduction
        self.ohem, self.min_kept = ohem, min_kept
        self.dice, self.auxiliary = dice, auxiliary
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor, auxiliary: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the losses of logits (B, K, H, W) against label maps (B, H, W) of any integer type.

        Args:
            logits: class logits.
            targets: class of each pixel, or `ignore_index`.
            auxiliary: the auxiliary head's logits (B, K, H, W).

        Returns:
            `loss`, the sum to minimize, and its parts (detached) where there are several.

        Raises:
            ConfigError: the number of class weights is not K.
        """
        if self.weights is not None and len(self.weights) != logits.shape[1]:
            raise ConfigError(f"class_weights: {len(self.weights)} numbers for {logits.shape[1]} classes")
        labels = targets.long()
        total = self._cross_entropy(logits, labels, ohem=self.ohem)
        parts = {"ce": total}
        if self.dice:
            parts["dice"] = self._dice(logits, labels)
            total = total + self.dice * parts["dice"]
        if auxiliary is not None:
            parts["auxiliary"] = self._cross_entropy(auxiliary, labels, ohem=None)
            total = total + self.auxiliary * parts["auxiliary"]
        shown = parts if len(parts) > 1 else {}
        return {"loss": total, **{name: value.detach() for name, value in shown.items()}}

    def _cross_entropy(self, logits: Tensor, labels: Tensor, *, ohem: float | None) -> Tensor:
        losses = F.cross_entropy(logits.float(), labels, ignore_index=self.ignore_index, reduction="none")
        weights = (labels != self.ignore_index).float()  # (B, H, W)
        if ohem is not None:
            weights = weights * self._hard_examples(losses.detach(), labels, -log(ohem))
        if self.weights is not None:
            weights = weights * self.weights[labels.clamp(max=len(self.weights) - 1)]
        if self.reduction == "all":
            return (losses * weights).sum() / labels.numel()
        return (losses * weights).sum() / weights.sum().clamp(min=torch.finfo(torch.float32).tiny)

    def _hard_examples(self, losses: Tensor, labels: Tensor, threshold: float) -> Tensor:
        """Mask (B, H, W) of pixels with a loss above the threshold, or among the `min_kept` largest."""
        ranked = losses.masked_fill(labels == self.ignore_index, -1.0).flatten()
        kept = min(self.min_kept * labels.shape[0], ranked.numel())
        if kept == 0:
            return losses > threshold
        smallest_kept = ranked.kthvalue(ranked.numel() - kept + 1).values
        return (losses > threshold) | (losses >= smallest_kept)

    def _dice(self, logits: Tensor, labels: Tensor) -> Tensor:
        """1 − 2·|p·t| / (|p| + |t|), averaged over the classes present in the batch."""
        valid = (labels != self.ignore_index).unsqueeze(1)
        truth = labels.unsqueeze(1).where(valid, 0)
        probabilities = logits.float().softmax(1) * valid
        target = torch.zeros_like(probabilities).scatter_(1, truth, valid.float())  # one-hot (B, K, H, W)
        overlap, size = (probabilities * target).sum((0, 2, 3)), target.sum((0, 2, 3))
        present = size > 0
        dice = 2 * overlap / (probabilities.sum((0, 2, 3)) + size).where(present, 1.0)
        return ((1 - dice) * present).sum() / present.sum().clamp(min=1)
