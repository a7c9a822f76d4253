"""What is minimized when classes of pixels are learned."""

from collections.abc import Sequence
from math import log
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.errors import ConfigError

Reduction = Literal["valid", "all"]
REDUCTIONS = ("valid", "all")


class SegmentationLoss(nn.Module):
    """Cross-entropy of pixels, with Dice and an auxiliary head's part where they are asked for.

    A batch in which every pixel is ignored gives zero.

    Args:
        ignore_index: label of pixels that do not count.
        reduction: divide by the pixels that count (`valid`), or by all pixels, ignored ones too (`all`), as
            mmsegmentation's published runs do.
        ohem: learn only from pixels whose right class has a probability below this
            (https://arxiv.org/abs/1604.03540); None for all.
        min_kept: … and from at least so many pixels per image, the worst.
        dice: weight of the Dice loss over the classes present (https://arxiv.org/abs/1606.04797).
        class_weights: factor of each class's pixels in the cross-entropy.
        auxiliary: weight of the auxiliary head's cross-entropy.

    Raises:
        ConfigError: a value that cannot be.
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
        if reduction not in REDUCTIONS:
            raise ConfigError(f"reduction: {reduction!r} is none of {', '.join(map(repr, REDUCTIONS))}")
        if ohem is not None and not 0 < ohem < 1:
            raise ConfigError(f"ohem: {ohem!r} is no probability: it must be above 0 and below 1")
        for name, value in (("min_kept", min_kept), ("dice", dice), ("auxiliary", auxiliary)):
            if value < 0:
                raise ConfigError(f"{name}: {value!r} must not be negative")
        if class_weights is not None and (not class_weights or min(class_weights) < 0):
            raise ConfigError("class_weights: one number of at least 0 for each class is needed")
        self.ignore_index, self.reduction = ignore_index, reduction
        self.ohem, self.min_kept = ohem, min_kept
        self.dice, self.auxiliary = dice, auxiliary
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, targets: Tensor, auxiliary: Tensor | None = None) -> dict[str, Tensor]:
        """Losses of logits (B, K, H, W) against label maps (B, H, W) of any integer type.

        Returns:
            `loss`, which is minimized, and where it has several parts these too.

        Raises:
            ConfigError: class weights for another number of classes.
        """
        if self.weights is not None and len(self.weights) != logits.shape[1]:
            raise ConfigError(f"class_weights: {len(self.weights)} numbers for {logits.shape[1]} classes")
        labels = targets.long()
        total = self._cross_entropy(logits, labels, hard=True)
        parts = {"ce": total}
        if self.dice:
            parts["dice"] = self._dice(logits, labels)
            total = total + self.dice * parts["dice"]
        if auxiliary is not None:
            parts["auxiliary"] = self._cross_entropy(auxiliary, labels, hard=False)
            total = total + self.auxiliary * parts["auxiliary"]
        shown = parts if len(parts) > 1 else {}
        return {"loss": total, **{name: value.detach() for name, value in shown.items()}}

    def _cross_entropy(self, logits: Tensor, labels: Tensor, *, hard: bool) -> Tensor:
        losses = F.cross_entropy(logits.float(), labels, ignore_index=self.ignore_index, reduction="none")
        counts = (labels != self.ignore_index).float()
        if hard and self.ohem is not None:
            counts = counts * self._hard(losses.detach(), labels, -log(self.ohem))
        if self.weights is not None:
            counts = counts * self.weights[labels.clamp(max=len(self.weights) - 1)]
        if self.reduction == "all":
            return (losses * counts).sum() / labels.numel()
        return (losses * counts).sum() / counts.sum().clamp(min=torch.finfo(torch.float32).tiny)

    def _hard(self, losses: Tensor, labels: Tensor, bound: float) -> Tensor:
        """Tell which pixels are the worst, or bad enough."""
        ranked = losses.masked_fill(labels == self.ignore_index, -1.0).flatten()
        kept = min(self.min_kept * labels.shape[0], ranked.numel())
        if kept == 0:
            return losses > bound
        least = ranked.kthvalue(ranked.numel() - kept + 1).values
        return (losses > bound) | (losses >= least)

    def _dice(self, logits: Tensor, labels: Tensor) -> Tensor:
        """One minus twice the common share of prediction and truth, averaged over the classes present."""
        valid = (labels != self.ignore_index).unsqueeze(1)
        truth = labels.unsqueeze(1).where(valid, 0)
        probabilities = logits.float().softmax(1) * valid
        hits = torch.zeros_like(probabilities).scatter_(1, truth, valid.float())
        common, size = (probabilities * hits).sum((0, 2, 3)), hits.sum((0, 2, 3))
        present = size > 0
        share = 2 * common / (probabilities.sum((0, 2, 3)) + size).where(present, 1.0)
        return ((1 - share) * present).sum() / present.sum().clamp(min=1)
