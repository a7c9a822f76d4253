"""Accuracy of a study's trained networks on test images that are shifted, rotated, resized or corrupted.

Corruptions are those of ImageNet-C, the blur's severities those of CIFAR-10-C for its images of 32 pixels,
https://arxiv.org/abs/1903.12261.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as image_ops

from metaformer.config import TrainConfig
from metaformer.data.sampler import hash64
from metaformer.distributed import World
from metaformer.errors import SizeError
from metaformer.study.plan import Plan
from metaformer.study.predict import forward, sample_test_images
from metaformer.study.results import PerturbationKind, PerturbedAccuracy
from metaformer.tasks.base import Task

IMAGES: Final = 2000
"""Test images that are perturbed, at most."""
SEVERITIES: Final = (1, 3, 5)


class Perturbation(NamedTuple):
    """What is done to images."""

    kind: PerturbationKind
    name: str
    level: float

    def apply(self, images: Tensor, indices: Tensor) -> Tensor:
        """Perturb images (B, 3, H, W) with values from 0 to 1; noise is a function of their indices (B,)."""
        if self.name in NOISES:
            return NOISES[self.name](images, int(self.level), indices)
        return PERTURBATIONS[self.name](images, self.level)


def perturbations(kinds: tuple[PerturbationKind, ...], size: int) -> list[Perturbation]:
    """All perturbations of these kinds, for images of a size in pixels."""
    levels: dict[PerturbationKind, tuple[float, ...]] = {
        "shift": tuple(dict.fromkeys((0, 1, 2, size // 16, size // 8))),
        "rotation": (0, 10, 20, 30, 45),
        "size": tuple(round(size * factor) for factor in (0.5, 0.75, 1.25, 1.5, 2)),
        "corruption": SEVERITIES,
    }
    return [
        Perturbation(kind, name, level)
        for kind in levels
        if kind in kinds
        for name in (CORRUPTIONS if kind == "corruption" else (kind,))
        for level in levels[kind]
    ]


def shift(images: Tensor, pixels: int) -> Tensor:
    """Move images down and to the right; their edges repeat."""
    if not pixels:
        return images
    padded = F.pad(images, (pixels, 0, pixels, 0), mode="replicate")
    return padded[..., : images.shape[-2], : images.shape[-1]]


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Rotate images around their center; the corners show what the nearest edge does."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (width // 2, width // 2, height // 2, height // 2), mode="replicate")
    turned = image_ops.rotate(padded, degrees, image_ops.InterpolationMode.BILINEAR)
    return image_ops.center_crop(turned, [height, width])


def resize(images: Tensor, side: int) -> Tensor:
    """Resample images to another size."""
    return image_ops.resize(images, [side, side], antialias=True)


def gaussian_noise(images: Tensor, severity: int, indices: Tensor) -> Tensor:
    """Add noise, drawn for each image from its index and the severity."""
    scale = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    noise = torch.stack([_noise(images.shape[1:], severity, index) for index in indices.tolist()])
    return (images + scale * noise.to(images.device)).clamp(0, 1)


def _noise(shape: torch.Size, severity: int, index: int) -> Tensor:
    """Standard normal noise of one image."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(hash64(severity, index)))


def gaussian_blur(images: Tensor, severity: int) -> Tensor:
    """Blur, with sigmas in proportion to the image; its edges repeat."""
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1] * images.shape[-1] / 32
    radius = int(4 * sigma + 0.5)
    padded = F.pad(images, (radius,) * 4, mode="replicate")
    blurred = image_ops.gaussian_blur(padded, [2 * radius + 1] * 2, [sigma] * 2)
    return image_ops.center_crop(blurred, list(images.shape[-2:]))


def contrast(images: Tensor, severity: int) -> Tensor:
    """Move values towards the mean of their image and channel."""
    factor = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    mean = images.mean((2, 3), keepdim=True)
    return ((images - mean) * factor + mean).clamp(0, 1)


def pixelate(images: Tensor, severity: int) -> Tensor:
    """Reduce the image by a box filter, then enlarge its pixels."""
    factor = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    rows, columns = (_box_filter(side, max(1, int(side * factor))) for side in images.shape[-2:])
    small = rows.to(images) @ images @ columns.to(images).T
    return F.interpolate(small, images.shape[-2:], mode="nearest-exact")


def _box_filter(size: int, reduced: int) -> Tensor:
    """Weights (reduced, size) of Pillow's box filter: means of the positions whose centers a box holds."""
    scale = size / reduced
    centers, boxes = (torch.arange(n, dtype=torch.float64) + 0.5 for n in (size, reduced))
    offset = (centers - scale * boxes[:, None]) / scale
    weights = ((offset > -0.5) & (offset <= 0.5)).float()
    return weights / weights.sum(1, keepdim=True)


NOISES: Final[dict[str, Callable[[Tensor, int, Tensor], Tensor]]] = {"gaussian_noise": gaussian_noise}
"""Corruptions with random numbers."""
PERTURBATIONS: Final[dict[str, Callable[[Tensor, Any], Tensor]]] = {
    "shift": shift,
    "rotation": rotate,
    "size": resize,
    "gaussian_blur": gaussian_blur,
    "contrast": contrast,
    "pixelate": pixelate,
}
"""The other perturbations."""
CORRUPTIONS: Final = ("gaussian_noise", "gaussian_blur", "contrast", "pixelate")


def measure_robustness(
    plan: Plan, task: Task, config: TrainConfig, world: World
) -> Iterator[PerturbedAccuracy]:
    """Accuracy on perturbed test images; sizes that the network does not take are left out.

    Args:
        plan: of the study.
        task: with the trained network.
        config: of its run.
        world: its device.
    """
    planned = perturbations(plan.robustness, config.data.image_size)
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.data.mean, config.data.std))
    correct: dict[Perturbation, list[Tensor]] = {one: [] for one in planned}
    for batch in sample_test_images(task, config, plan.data, world, IMAGES):
        pixels = (batch.images * std + mean).clamp(0, 1)
        for one in planned:
            with suppress(SizeError):
                logits = forward(task, config, (one.apply(pixels, batch.indices) - mean) / std, world)
                correct[one].append(logits.argmax(1).cpu() == batch.labels)
    for one, found in correct.items():
        if found:
            accuracy = 100 * float(torch.cat(found).double().mean())
            yield PerturbedAccuracy(kind=one.kind, name=one.name, level=one.level, accuracy=accuracy)
