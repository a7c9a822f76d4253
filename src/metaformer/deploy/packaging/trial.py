"""Images that a package is tried on, and how far its answers may be from the network's."""

from typing import Final

import torch
from torch import Tensor, nn

from metaformer.deploy.optimize import TOLERANCE
from metaformer.deploy.packaging.input_limits import InputLimits
from metaformer.deploy.packaging.packaged import Packaged
from metaformer.deploy.packaging.tensors import named_tensors
from metaformer.errors import OptimizeError

Trial = tuple[Tensor, dict[str, Tensor]]
"""Images, and what the network says of them."""
ROUNDINGS: Final = 16
"""Steps of a half type that outputs may differ by, as a share of the largest; float32 has `TOLERANCE`."""


def trial_images(network: nn.Module, limits: InputLimits, sample: Tensor | None) -> list[Tensor]:
    """Two batches to compare on: the smallest, and another of another size where it may vary."""
    first = next(network.parameters())
    generator = torch.Generator().manual_seed(0)

    def noise(count: int, height: int, width: int) -> Tensor:
        images = torch.randn((count, limits.channels, height, width), generator=generator)
        return images.to(first.device, first.dtype)

    least, most = limits.batch
    (low, high), (left, right) = limits.height, limits.width
    beside = noise(min(most, least + 2), min(high, low + 5), min(right, left + 37))
    if sample is None:
        return [noise(least, low, left), beside]
    fitting = low <= sample.shape[2] <= high and left <= sample.shape[3] <= right
    shown = sample.to(first.device, first.dtype)[:most]
    return [shown, beside] if fitting and len(shown) >= least else [noise(least, low, left), beside]


def compare(packaged: Packaged, trials: list[Trial]) -> float:
    """The largest difference on any batch, as a share of the largest output.

    Raises:
        OptimizeError: it is more than rounding.
    """
    largest = 0.0
    for images, wanted in trials:
        with torch.no_grad():
            given = dict(named_tensors(packaged(images)))
        for name, theirs in wanted.items():
            scale = theirs.float().abs().max().clamp(min=1e-12)
            share = ((given[name].float() - theirs.float()).abs().max() / scale).item()
            eps = torch.finfo(theirs.dtype).eps
            if not share <= max(TOLERANCE, ROUNDINGS * eps):
                raise OptimizeError(
                    f"the package differs from the network by {share:.1e} of the largest {name} on images "
                    f"{tuple(images.shape)}: nothing was written; please report the model"
                )
            largest = max(largest, share)
    return largest
