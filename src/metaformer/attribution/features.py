"""Features of the stages in colors: their three principal components as red, green and blue."""

import torch
from torch import Tensor, nn

from metaformer.attribution.stages import trunk_of

COLORS = 3
SPREAD = 0.02
"""Share of the positions at either end of a component that get its darkest or its brightest color."""


def stage_features(network: nn.Module, x: Tensor) -> list[Tensor]:
    """Features (B, C_i, h_i, w_i) of each stage, finest first, of a network's input (B, C, H, W)."""
    with torch.inference_mode():
        levels: list[Tensor] = trunk_of(network).forward_intermediates(x, intermediates_only=True)
    return levels


def principal_components(features: Tensor, count: int = COLORS) -> Tensor:
    """The positions of features (C, h, w) along their first principal components: (count, h, w), float64.

    A component's sign is that of its largest weight; components that the positions do not have are 0.
    """
    points = features.detach().double().flatten(1).T  # (N, C)
    points = points - points.mean(0)
    _, sizes, axes = torch.linalg.svd(points, full_matrices=False)
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    scores = (points @ (axes * largest.sign()).T)[:, :count]
    # what rounding alone has made is no component
    scores = scores * (sizes[:count] > sizes[0] * 1e-6)
    missing = count - scores.shape[1]
    return torch.nn.functional.pad(scores, (0, missing)).T.unflatten(1, features.shape[1:])


def pca_colors(features: Tensor) -> Tensor:
    """Features (C, h, w) as an image (3, h, w) from 0 to 1, in which alike positions have alike colors.

    Each component fills its channel from end to end, but for outliers; one that is missing is 0.5.
    """
    components = principal_components(features).flatten(1)
    ends = components.new_tensor([SPREAD, 1 - SPREAD])
    low, high = components.quantile(ends, dim=1)[..., None]
    span = high - low
    colors = torch.where(span > 0, (components - low) / span.clamp(min=1e-300), 0.5).clamp(0, 1)
    return colors.float().unflatten(1, features.shape[1:])
