"""Mixup (https://arxiv.org/abs/1710.09412) and CutMix (https://arxiv.org/abs/1905.04899) by seed and step."""

import math

import numpy as np
import torch
from torch import Tensor

from metaformer.data.sampler import hash64
from metaformer.errors import ConfigError


class Mixup:
    """Mixup or CutMix of a batch with its reverse (`flip(0)`), drawn once per batch, as in timm.

    Targets are soft and label-smoothed whether a batch is mixed or not; the loss must not smooth them again.
    In a batch of odd size the middle image stays as it is.

    Args:
        num_classes: number of classes.
        mixup: alpha of Mixup; 0 for none.
        cutmix: alpha of CutMix; 0 for none.
        probability: probability of mixing a batch.
        switch: probability of CutMix if both are on.
        smoothing: label smoothing.
        seed: the run's seed.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        mixup: float = 0.8,
        cutmix: float = 1.0,
        probability: float = 1.0,
        switch: float = 0.5,
        smoothing: float = 0.1,
        seed: int = 0,
    ) -> None:
        for field, value in (
            ("augment.mix_probability", probability),
            ("augment.mix_switch", switch),
            ("loss.smoothing", smoothing),
        ):
            if not 0 <= value <= 1:
                raise ConfigError(f"{field} is {value}: it must lie between 0 and 1")
        if mixup < 0 or cutmix < 0:
            raise ConfigError(f"augment.mixup {mixup}, augment.cutmix {cutmix}: alphas cannot be negative")
        self.num_classes, self.mixup, self.cutmix = num_classes, mixup, cutmix
        self.probability, self.switch, self.smoothing, self.seed = probability, switch, smoothing, seed

    def __call__(
        self, images: Tensor, labels: Tensor, step: int, *, part: int = 0, active: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Mix images (B, C, H, W); returns them with soft targets (B, num_classes), float32.

        Args:
            images: normalized images, which are not modified.
            labels: classes (B,).
            step: optimizer step since the start of the run.
            part: which of the step's batches, over ranks and micro-batches.
            active: False returns the images as they are (after `augment.mix_off_epoch`).
        """
        targets = self._smooth(labels)
        if not active or not (self.mixup or self.cutmix):
            return images, targets
        # streams of RandomState are frozen; those of newer generators may change between versions of numpy
        seed = hash64(self.seed, step, part)
        draw = np.random.RandomState([seed & 0xFFFFFFFF, seed >> 32])
        if draw.rand() >= self.probability:
            return images, targets
        both = self.mixup > 0 and self.cutmix > 0
        if draw.rand() < self.switch if both else self.cutmix > 0:
            images, share = _cutmix(images, draw.beta(self.cutmix, self.cutmix), draw)
        else:
            share = draw.beta(self.mixup, self.mixup)
            images = images * share + images.flip(0) * (1 - share)
        return images, targets * share + targets.flip(0) * (1 - share)

    def _smooth(self, labels: Tensor) -> Tensor:
        off = self.smoothing / self.num_classes
        targets = torch.full((len(labels), self.num_classes), off, device=labels.device)
        return targets.scatter_(1, labels.long()[:, None], 1 - self.smoothing + off)


def _cutmix(images: Tensor, share: float, draw: np.random.RandomState) -> tuple[Tensor, float]:
    """Paste a box of the reversed batch; returns also the share of pixels outside the clipped box."""
    height, width = images.shape[-2:]
    side = math.sqrt(1 - share)
    box_height, box_width = int(height * side), int(width * side)
    y, x = int(draw.randint(height)), int(draw.randint(width))
    top, left = max(y - box_height // 2, 0), max(x - box_width // 2, 0)
    bottom, right = min(y + (box_height + 1) // 2, height), min(x + (box_width + 1) // 2, width)
    mixed = images.clone()
    mixed[..., top:bottom, left:right] = images.flip(0)[..., top:bottom, left:right]
    return mixed, 1 - (bottom - top) * (right - left) / (height * width)
