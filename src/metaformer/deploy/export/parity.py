"""Comparison of a file with the network that it was made from, on images of several sizes."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metaformer.data.folder import EXTENSIONS
from metaformer.data.image import read_image
from metaformer.data.preprocess import Normalize
from metaformer.errors import BadImage, OptimizeError
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.exported import ExportCard

SAMPLES: Final = 8
"""Images that are looked for in the run's data."""
Pixels = NDArray[np.uint8]


def compare(model: LoadedModel, exported: LoadedModel, card: ExportCard, side: int) -> dict[str, float]:
    """The largest differences between a network and its file, by the names of `TaskExport.tolerances`.

    Args:
        model: the network.
        exported: its file.
        card: what the file says.
        side: usual height and width of the input.

    Raises:
        OptimizeError: one is more than its tolerance.
    """
    task, images = model.spec.export, _samples(model)
    worst: dict[str, float] = {}
    for shape in _shapes(card, side):
        pixels, sizes = _batch(images, shape, padded=task.forward_takes_sizes)
        extra = (sizes,) if task.forward_takes_sizes else ()
        with torch.inference_mode():
            expected = model.forward(_normalized(pixels, sizes, model), *extra)
            inputs = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
            if card.input == "float":
                inputs = _normalized(pixels, sizes, model)
            found = exported.forward(inputs, *extra)
        differences = task.compare(expected, found)
        for name, value in differences.items():
            allowed = task.tolerance(name, card.dtype)
            if not value <= allowed:
                raise OptimizeError(
                    f"the file differs from the network by {value:.1e} in {name} on {shape[0]} images of "
                    f"{shape[1]}×{shape[2]} pixels, more than {allowed:.0e}: nothing was written; please "
                    "report the model"
                )
            worst[name] = max(worst.get(name, 0.0), value)
    return worst


def _shapes(card: ExportCard, side: int) -> Iterator[tuple[int, int, int]]:
    """Batch, height and width of the comparisons: usual, smallest, uneven."""
    least = card.min_size
    for batch, height, width in ((2, side, side), (1, least, least), (3, side // 2 + 33, side + 31)):
        size = card.image_size or (max(least, height), max(least, width))
        yield card.batch or batch, *size


def _batch(
    images: list[Image.Image], shape: tuple[int, int, int], padded: bool
) -> tuple[Pixels, list[tuple[int, int]]]:
    """Images (B, H, W, 3) and their sizes; with `padded` all but the first are smaller than the batch."""
    count, height, width = shape
    pixels = np.zeros((count, height, width, 3), np.uint8)
    sizes = []
    for i in range(count):
        own = (max(1, height - 3 * i), max(1, width - 5 * i)) if padded else (height, width)
        pixels[i, : own[0], : own[1]] = np.asarray(images[i % len(images)].resize((own[1], own[0])))
        sizes.append(own)
    return pixels, sizes


def _normalized(pixels: Pixels, sizes: list[tuple[int, int]], model: LoadedModel) -> Tensor:
    """The network's input, zero beyond each image."""
    normalize = Normalize(model.preprocess.mean, model.preprocess.std)
    batch = torch.zeros(len(pixels), 3, *pixels.shape[1:3])
    for x, image, (height, width) in zip(batch, pixels, sizes, strict=True):
        x[:, :height, :width] = normalize(Image.fromarray(image[:height, :width]))
    return batch


def _samples(model: LoadedModel) -> list[Image.Image]:
    """Images of the run's data where they are at hand, else made ones: noise of several scales and shapes."""
    found: list[Image.Image] = []
    root = model.config and Path(model.config.data.root)
    for folder, _, names in os.walk(root) if root else ():
        for name in sorted(names):
            if Path(name).suffix.lower() in EXTENSIONS and len(found) < SAMPLES:
                try:
                    found.append(read_image(Path(folder, name)))
                except BadImage:
                    continue
        if len(found) == SAMPLES:
            break
    return found or [_made(seed) for seed in range(SAMPLES)]


def _made(seed: int) -> Image.Image:
    random, side = np.random.default_rng(seed), 256
    total = np.zeros((side, side, 3))
    for cells in (4, 16, 64):
        noise = random.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        total += np.asarray(Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC))
    image = (total / 3).astype(np.uint8)
    for _ in range(6):
        top, left, height, width = random.integers(0, side // 2, 4)
        image[top : top + height + 8, left : left + width + 8] = random.integers(0, 256, 3)
    return Image.fromarray(image)
