"""Which pixels a position of the features depends on: the effective receptive field, and one stage's part.

The rule is that of RepLKNet, https://arxiv.org/abs/2203.06717, section 4 and appendix.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metaformer.attribution.stages import stage_of, trunk_of

SHARES = (0.2, 0.3, 0.5, 0.99)
"""Parts of the whole contribution whose squares are reported."""
Features = Callable[[Tensor], Tensor]
"""A network's features (B, C, h, w) of its input."""


class Square(NamedTuple):
    """The smallest centered square that holds a share of the contribution."""

    share: float
    side: int
    """In pixels."""
    ratio: float
    """Its area's share of the input's."""


@dataclass(frozen=True, eq=False)
class ReceptiveField:
    """How much each input pixel contributes to the central position of the features."""

    gradients: Tensor
    """Positive gradients, summed over channels, their mean over images: (H, W), float64."""

    @property
    def scores(self) -> Tensor:
        """log10(gradients + 1), divided by the largest: (H, W) from 0 to 1."""
        scores = (self.gradients + 1).log10()
        return scores / scores.max().clamp(min=torch.finfo(scores.dtype).tiny)

    def squares(self, shares: Iterable[float] = SHARES) -> list[Square]:
        """The centered square of each share; the whole input where no smaller one of an odd side suffices."""
        return [smallest_square(self.scores, share) for share in shares]


def smallest_square(scores: Tensor, share: float) -> Square:
    """The smallest square of an odd side, at least 3, around the center that holds more than a share."""
    height, width = scores.shape
    rows, columns = (torch.arange(side) - side // 2 for side in (height, width))
    rings = torch.maximum(rows.abs()[:, None], columns.abs()[None]).flatten()  # distance from the center
    inside = torch.bincount(rings, scores.double().cpu().flatten()).cumsum(0) / scores.double().sum().cpu()
    for distance in range(1, min(height, width) // 2):
        if inside[distance] > share:
            side = 2 * distance + 1
            return Square(share, side, side * side / (height * width))
    return Square(share, min(height, width), min(height, width) ** 2 / (height * width))


def receptive_field(features: Features, images: Iterable[Tensor]) -> ReceptiveField:
    """Effective receptive field of the central position.

    Args:
        features: the network, up to the features.
        images: inputs (1, C, H, W), all of one size, normalized.
    """
    total, count = torch.zeros(()), 0
    for x in images:
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_()
            level = features(x)
            center = level[:, :, level.shape[2] // 2, level.shape[3] // 2].relu().sum()
            (gradient,) = torch.autograd.grad(center, x)
        total = total + gradient.relu().double().sum((0, 1)).cpu()
        count += 1
    return ReceptiveField(total / count)


def token_gradient(
    network: nn.Module, x: Tensor, stage: int, position: tuple[int, int] | None = None
) -> Tensor:
    """What one output position of a stage looks at in the stage's input: (h, w), the gradient's size.

    Args:
        network: classifier, segmenter or detector.
        x: one input (1, C, H, W).
        stage: from 0; −1 for the last. The input of the first is the stem's output.
        position: row and column of the output; the central one by default.
    """
    seen: list[Tensor] = []

    def keep(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        seen.extend((args[0], output))

    hook = stage_of(network, stage).register_forward_hook(keep)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            trunk_of(network).forward_features(x.clone().requires_grad_())
            given, output = seen
            row, column = position or (output.shape[2] // 2, output.shape[3] // 2)
            (gradient,) = torch.autograd.grad(output[0, :, row, column].sum(), given)
    finally:
        hook.remove()
    return gradient[0].float().norm(dim=0)
