"""Losses of classification."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from metaformer.errors import ConfigError

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, K) and classes (B,) or soft targets (B, K) to their mean loss."""


def build_criterion(name: str, smoothing: float = 0.0, aug_splits: int = 1) -> Criterion:
    """Make the loss of this name; label smoothing acts on classes, soft targets carry their own.

    `bce` is binary cross-entropy over all classes (https://arxiv.org/abs/2110.00476), `jsd` adds the
    Jensen-Shannon divergence between `aug_splits` views, stacked view by view (https://arxiv.org/abs/1912.02781).

    Raises:
        ConfigError: an unknown name, or JSD without views.
    """
    if not 0 <= smoothing < 1:
        raise ConfigError(f"loss.smoothing is {smoothing}: it must be at least 0 and below 1")
    if name == "cross_entropy":
        return CrossEntropy(smoothing)
    if name == "bce":
        from timm.loss import BinaryCrossEntropy

        return BinaryCrossEntropy(smoothing=smoothing)
    if name == "jsd":
        if aug_splits < 2:
            raise ConfigError(
                f"loss.name 'jsd' compares views of an image: augment.aug_splits is {aug_splits}, set 2 or 3"
            )
        from timm.loss import JsdCrossEntropy

        return JsdCrossEntropy(num_splits=aug_splits, smoothing=smoothing)
    raise ConfigError(f"loss.name: {name!r} is none of cross_entropy, bce, jsd")


class CrossEntropy:
    """Cross-entropy, over classes with smoothing or over soft targets as they are."""

    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch."""
        return F.cross_entropy(logits, targets, label_smoothing=self.smoothing if targets.ndim == 1 else 0.0)
