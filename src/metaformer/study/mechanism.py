"""What trained networks of a study do: where they look, and what changes of an image cost them accuracy.

Corruptions and their severities are those of ImageNet-C and CIFAR-10-C, https://arxiv.org/abs/1903.12261.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as image_ops

from metaformer.attribution.receptive_field import ReceptiveField, receptive_field
from metaformer.config import TrainConfig
from metaformer.distributed import World
from metaformer.errors import SizeError
from metaformer.inference.receptive_field import ENLARGED
from metaformer.study.plan import Plan, Probe
from metaformer.study.predict import evaluation_on_test, forward
from metaformer.study.results import Mechanism, Robustness, Square
from metaformer.study.runs import Run
from metaformer.tasks.base import Task

IMAGES: Final = 2000
"""Test images that are changed, at most."""
FIELD_IMAGES: Final = 10
"""Images whose receptive field is averaged."""
SEVERITIES: Final = (1, 3, 5)


class Change(NamedTuple):
    """A change of images."""

    probe: Literal["shift", "rotation", "size", "corruption"]
    name: str
    level: float

    def apply(self, images: Tensor) -> Tensor:
        """Change images (B, 3, H, W) with values from 0 to 1."""
        return CHANGES[self.name](images, self.level)


def changes(probes: tuple[Probe, ...], size: int) -> list[Change]:
    """All changes of these probes, for images of a size in pixels."""
    sides = [round(size * factor) for factor in (0.5, 0.75, 1.25, 1.5, 2)]
    shifts = dict.fromkeys((0, 1, 2, size // 16, size // 8))
    found = [
        *(Change("shift", "shift", pixels) for pixels in shifts),
        *(Change("rotation", "rotation", degrees) for degrees in (0, 10, 20, 30, 45)),
        *(Change("size", "size", side) for side in sides),
        *(Change("corruption", one.__name__, level) for one in CORRUPTIONS for level in SEVERITIES),
    ]
    return [change for change in found if change.probe in probes]


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


def gaussian_noise(images: Tensor, severity: int) -> Tensor:
    """Add noise, the same in every study."""
    scale = (0.08, 0.12, 0.18, 0.26, 0.38)[severity - 1]
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(severity))
    return (images + scale * noise.to(images.device)).clamp(0, 1)


def gaussian_blur(images: Tensor, severity: int) -> Tensor:
    """Blur, by sigmas that CIFAR-10-C has for 32 pixels."""
    sigma = (0.4, 0.6, 0.7, 0.8, 1.0)[severity - 1] * images.shape[-1] / 32
    return image_ops.gaussian_blur(images, [2 * int(4 * sigma + 0.5) + 1] * 2, [sigma] * 2)


def contrast(images: Tensor, severity: int) -> Tensor:
    """Move values towards the mean of their image and channel."""
    factor = (0.4, 0.3, 0.2, 0.1, 0.05)[severity - 1]
    mean = images.mean((2, 3), keepdim=True)
    return ((images - mean) * factor + mean).clamp(0, 1)


def pixelate(images: Tensor, severity: int) -> Tensor:
    """Reduce the image by averaging, then enlarge its pixels."""
    size = images.shape[-2:]
    factor = (0.6, 0.5, 0.4, 0.3, 0.25)[severity - 1]
    small = F.interpolate(images, [max(1, int(side * factor)) for side in size], mode="area")
    return F.interpolate(small, size, mode="nearest")


CORRUPTIONS: Final = (gaussian_noise, gaussian_blur, contrast, pixelate)
CHANGES: Final[dict[str, Callable[[Tensor, Any], Tensor]]] = {
    "shift": shift,
    "rotation": rotate,
    "size": resize,
    **{one.__name__: one for one in CORRUPTIONS},
}
"""What each change does, by its name."""


def measure_mechanism(
    plan: Plan, run: Run, task: Task, config: TrainConfig, world: World
) -> tuple[Mechanism, ReceptiveField | None]:
    """What the plan's probes say of a run's trained network, and its effective receptive field.

    Args:
        plan: of the study.
        run: whose network it is.
        task: with the trained network.
        config: of the run.
        world: its device.
    """
    field = measure_field(plan, task, config, world) if "receptive_field" in plan.probes else None
    squares = () if field is None else tuple(Square(**one._asdict()) for one in field.squares())
    robustness = tuple(measure_robustness(plan, task, config, world))
    return (
        Mechanism(run=run.name, arm=run.arm.name, seed=run.seed, squares=squares, robustness=robustness),
        field,
    )


def measure_field(plan: Plan, task: Task, config: TrainConfig, world: World) -> ReceptiveField:
    """Effective receptive field on a few test images, enlarged where the network takes another size."""
    network: Any = task.model
    side = config.data.image_size * (1 if network.config.fixed_size else ENLARGED)
    given = _images(plan, task, config, world, FIELD_IMAGES)
    images = (resize(one, side).to(world.device) for batch, _ in given for one in batch.split(1))
    return receptive_field(network.forward_features, images)


def measure_robustness(plan: Plan, task: Task, config: TrainConfig, world: World) -> Iterator[Robustness]:
    """Accuracy on changed test images; sizes that the network does not take are left out."""
    wanted = changes(plan.probes, config.data.image_size)
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.data.mean, config.data.std))
    right: dict[Change, list[Tensor]] = {change: [] for change in wanted}
    for images, labels in _images(plan, task, config, world, IMAGES) if wanted else ():
        pixels = (images * std + mean).clamp(0, 1)
        for change in wanted:
            with suppress(SizeError):
                logits = forward(task, config, (change.apply(pixels) - mean) / std, world)
                right[change].append(logits.argmax(1).cpu() == labels)
    for change, found in right.items():
        if found:
            accuracy = 100 * float(torch.cat(found).double().mean())
            yield Robustness(probe=change.probe, change=change.name, level=change.level, accuracy=accuracy)


def _images(
    plan: Plan, task: Task, config: TrainConfig, world: World, most: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Input (B, 3, H, W) and labels of test images, evenly from all, at most so many."""
    with evaluation_on_test(task, config, plan.data, world) as evaluation:
        stride = -(-len(evaluation.folder) // most)
        for batch in evaluation.loader:
            chosen = batch.indices % stride == 0
            if chosen.any():
                yield batch.images[chosen], batch.labels[chosen]
