"""Classification losses."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from metaformer.errors import ConfigError

Criterion = Callable[[Tensor, Tensor], Tensor]
"""Mean loss of logits (B, K) with classes (B,) or soft targets (B, K)."""


def build_criterion(name: str, smoothing: float = 0.0, aug_splits: int = 1) -> Criterion:
    """Build a loss by name.

    Args:
        name: `cross_entropy`; `bce`, binary cross-entropy over all classes (https://arxiv.org/abs/2110.00476);
            or `jsd`, cross-entropy with the Jensen-Shannon divergence between augmented views
            (https://arxiv.org/abs/1912.02781).
        smoothing: label smoothing of classes; soft targets have their own.
        aug_splits: views of each image, which follow each other along the batch.

    Raises:
        ConfigError: an unknown name, a value out of range, or `jsd` with a single view.
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
                f"loss.name 'jsd' compares views: set augment.aug_splits to 2 or 3, not {aug_splits}"
            )
        from timm.loss import JsdCrossEntropy

        return JsdCrossEntropy(num_splits=aug_splits, smoothing=smoothing)
    raise ConfigError(f"loss.name: {name!r} is unknown; choose cross_entropy, bce or jsd")


class CrossEntropy:
    """Cross-entropy with classes, which are label-smoothed, or with soft targets as they are."""

    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch."""
        return F.cross_entropy(logits, targets, label_smoothing=self.smoothing if targets.ndim == 1 else 0.0)
