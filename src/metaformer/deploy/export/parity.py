"""Comparison of a file with the network that it was made from, on images of several sizes."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metaformer.data.folder import EXTENSIONS
from metaformer.data.image import read_image
from metaformer.data.preprocess import Channels, Deviations, Normalize
from metaformer.deploy.export.source import ExportSource
from metaformer.errors import BadImage, OptimizeError
from metaformer.inference.exported import load_exported, open_exported
from metaformer.tasks.exported import ExportCard

SAMPLES: Final = 8
"""Images that are looked for in the run's data."""
Pixels = NDArray[np.uint8]
Shape = tuple[int, int, int]
"""Batch, height and width."""


def compare(source: ExportSource, file: Path, card: ExportCard) -> dict[str, float]:
    """The largest differences between a network and its file, by the names of `TaskExport.tolerances`.

    Args:
        source: the network.
        file: as written.
        card: what it says.

    Raises:
        OptimizeError: one is more than its tolerance.
    """
    worst = dict[str, float]()
    for shape, expected, found in results(source, file, card, _shapes(card, source.side)):
        for name, value in source.task.compare(expected, found).items():
            allowed = source.task.tolerance(name, card.dtype)
            if not value <= allowed:
                raise OptimizeError(
                    f"the file differs from the network by {value:.1e} in {name} on {shape[0]} images of "
                    f"{shape[1]}×{shape[2]} pixels, more than {allowed:.0e}: nothing was written; please "
                    "report the model"
                )
            worst[name] = max(worst.get(name, 0.0), value)
    return worst


def results(
    source: ExportSource, file: Path, card: ExportCard, shapes: Iterable[Shape]
) -> Iterator[tuple[Shape, Any, Any]]:
    """For batches of these shapes what the network gives, and what its file gives.

    The images are those of the run's data, or made ones where there are none.
    """
    if source.task_name is None:
        exported: Callable[..., Any] = source.task.network(*open_exported(file))
    else:
        exported = load_exported(file).forward
    images = _samples(source.root)
    for shape in shapes:
        batch, sizes = _batch(images, shape, padded=source.task.forward_takes_sizes)
        x = _normalized(batch, sizes, (source.preprocess.mean, source.preprocess.std))[:, : card.channels]
        raw = torch.from_numpy(batch).permute(0, 3, 1, 2).float() if card.input == "uint8" else x
        extra = (sizes,) if source.task.forward_takes_sizes else ()
        with torch.inference_mode():
            expected, found = source.forward(x, *extra), exported(raw, *extra)
        yield shape, expected, found


def _shapes(card: ExportCard, side: int) -> Iterator[Shape]:
    """Usual, smallest and uneven ones."""
    least = card.min_size
    for batch, height, width in ((2, side, side), (1, least, least), (3, side // 2 + 33, side + 31)):
        size = card.image_size or (max(least, height), max(least, width))
        yield card.batch or batch, *size


def _batch(images: list[Image.Image], shape: Shape, padded: bool) -> tuple[Pixels, list[tuple[int, int]]]:
    """Images (B, H, W, 3) and their sizes; with `padded` all but the first are smaller than the batch."""
    count, height, width = shape
    pixels = np.zeros((count, height, width, 3), np.uint8)
    sizes = []
    for i in range(count):
        own = (max(1, height - 3 * i), max(1, width - 5 * i)) if padded else (height, width)
        pixels[i, : own[0], : own[1]] = np.asarray(images[i % len(images)].resize((own[1], own[0])))
        sizes.append(own)
    return pixels, sizes


def _normalized(
    pixels: Pixels, sizes: list[tuple[int, int]], mean_std: tuple[Channels, Deviations]
) -> Tensor:
    """The network's input, zero beyond each image."""
    normalize = Normalize(*mean_std)
    batch = torch.zeros(len(pixels), 3, *pixels.shape[1:3])
    for x, image, (height, width) in zip(batch, pixels, sizes, strict=True):
        x[:, :height, :width] = normalize(Image.fromarray(image[:height, :width]))
    return batch


def _samples(root: str | Path | None) -> list[Image.Image]:
    """Images in a folder, else made ones: noise of several scales, and rectangles."""
    found: list[Image.Image] = []
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
