"""From an image to the class of each of its pixels: whole, in windows or tiles, in one view or several."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metaformer.config import TrainConfig
from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.errors import ConfigError
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.segmentation.resize_matrix import Span
from metaformer.tasks.segmentation.results import Segmentation
from metaformer.tasks.segmentation.tiled_inference import (
    GRID,
    DenseForward,
    ImageSight,
    Look,
    Sight,
    Strip,
    TensorSight,
    tiles,
    whole,
    windows,
)
from metaformer.tasks.stream import StreamPredictor

BAND = 32
"""Rows of the result that are made at once."""


CACHE = 1 << 20
"""Bytes of logits that are made at once on the CPU: they are used while they are in its cache."""


@dataclass(frozen=True)
class Inference:
    """How an image is looked at; the default is the official way, once and whole."""

    mode: str = "whole"
    """`whole`, or `slide`: windows that overlap, their logits averaged."""
    window: tuple[int, int] = (512, 512)
    """Height and width of a window of `slide`, in pixels of the network's input."""
    stride: tuple[int, int] = (341, 341)
    """Steps between windows, downwards and to the right."""
    scales: tuple[float, ...] = (1.0,)
    """Test-time augmentation: sizes of the input, as factors; probabilities are averaged over them."""
    flip: bool = False
    """Test-time augmentation: each size also mirrored left to right."""
    tile_pixels: int = 1 << 22
    """Pixels of input up to which `whole` is done at once; what is larger is done in tiles."""
    tile: int = 768
    """Height and width of a tile."""
    overlap: int = 128
    """Pixels at least over which neighboring tiles fade into each other."""

    def __post_init__(self) -> None:
        if self.mode not in ("whole", "slide"):
            raise ConfigError(f"mode is {self.mode!r}: choose whole or slide")
        for window, stride in zip(self.window, self.stride, strict=True):
            if not 1 <= stride <= window:
                raise ConfigError(
                    f"stride is {self.stride}, window {self.window}: steps must be 1 or more and leave no gap"
                )
        if not self.scales or not all(math.isfinite(scale) and scale > 0 for scale in self.scales):
            raise ConfigError(f"scales is {self.scales}: it must be numbers above 0, and at least one")
        if not 0 <= self.overlap < self.tile or self.tile % GRID or self.overlap % GRID:
            raise ConfigError(
                f"tile is {self.tile}, overlap {self.overlap}: both must be multiples of {GRID}, "
                "the tile the larger"
            )

    @property
    def views(self) -> int:
        """How often the network sees an image."""
        return len(self.scales) * (1 + self.flip)

    @torch.inference_mode()
    def label_map(
        self,
        forward: DenseForward,
        image: Image.Image | Tensor,
        preprocess: DensePreprocess | None = None,
        original_size: tuple[int, int] | None = None,
        *,
        name: str | Path = "the image",
    ) -> Tensor:
        """Class of each pixel (H, W), on the CPU: uint8, or int32 with more than 256 classes.

        The logits are resized to the network's input, then to the result, bilinearly; that is done by bands
        of rows, so that never more than one band of logits is there at the result's size.

        Args:
            forward: the network.
            image: an RGB image, or a normalized tensor (3, h, w) that is looked at as it is.
            preprocess: how an image becomes input; a tensor needs none.
            original_size: height and width of the result; the image's own when not given.
            name: what errors call the image.

        Raises:
            TrainingError: logits that are not finite.
            ConfigError: several scales of a tensor, or an image without preprocessing.
        """
        own = image.shape[-2:] if isinstance(image, Tensor) else (image.height, image.width)
        height, width = original_size or own
        looks = [
            Look(forward, sight, self.grid(*sight.size), (height, width), mirrored=mirrored, name=name)
            for sight in self._sights(image, preprocess)
            for mirrored in (False, True)[: 1 + self.flip]
        ]
        label_map: Tensor | None = None
        for start in range(0, height, BAND):
            band = _best(looks, start, min(start + BAND, height))
            if label_map is None:
                label_map = band.new_empty(height, width)
            label_map[start : start + BAND] = band
        assert label_map is not None  # images have at least one row
        return label_map

    def grid(self, height: int, width: int) -> tuple[list[Span], list[Span]]:
        """Windows along the height and the width of an input of this size."""
        if self.mode == "slide":
            return (
                windows(height, self.window[0], self.stride[0]),
                windows(width, self.window[1], self.stride[1]),
            )
        if height * width <= self.tile_pixels:
            return whole(height), whole(width)
        return tiles(height, self.tile, self.overlap), tiles(width, self.tile, self.overlap)

    def _sights(self, image: Image.Image | Tensor, preprocess: DensePreprocess | None) -> Iterator[Sight]:
        if isinstance(image, Tensor):
            if self.scales != (1.0,):
                raise ConfigError(f"scales is {self.scales}: a tensor is looked at as it is, give the image")
            yield TensorSight(image)
            return
        if preprocess is None:
            raise ConfigError("preprocess: an image needs one; only tensors are looked at as they are")
        for scale in self.scales:
            scaled = preprocess.scaled(scale)
            yield ImageSight(scaled.resized(image), scaled.tensor)


def _best(looks: list[Look], start: int, stop: int) -> Tensor:
    """Classes of the result's rows from `start` to `stop`."""
    strips = [look.band(start, stop) for look in looks]
    logits = strips[0][0].logits
    width, classes = looks[0].width, len(logits)
    fitting = max(16, CACHE // (4 * classes * (stop - start)))
    step = width if logits.is_cuda else min(width, fitting)
    band = torch.empty(stop - start, width, dtype=torch.uint8 if classes <= 256 else torch.int32)
    for left in range(0, width, step):
        right = min(left + step, width)
        band[:, left:right] = _scores(strips, left, right).max(dim=0).indices
    return band


def _scores(strips: list[list[Strip]], left: int, right: int) -> Tensor:
    """Logits (K, rows, columns) of one look, or the sum of several looks' probabilities."""
    if len(strips) == 1:
        return _logits(strips[0], left, right)
    scores = _logits(strips[0], left, right).softmax(dim=0)
    for look in strips[1:]:
        scores += _logits(look, left, right).softmax(dim=0)
    return scores


def _logits(strips: list[Strip], left: int, right: int) -> Tensor:
    """Logits (K, rows, columns) of one look, where its windows overlap their weighted sum."""
    logits: Tensor | None = None
    for axis, strip in strips:
        if axis.start < right and left < axis.stop:
            cells, matrix = axis.part(left, right)
            part = strip[:, :, cells] @ matrix.T
            logits = part if logits is None else logits.add_(part)
    assert logits is not None  # windows leave no gap
    return logits


def run_inference(
    config: TrainConfig | None,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    sliding_window: int | None = None,
) -> Inference:
    """Test-time augmentation and windows of a run's evaluation, with some of them changed.

    Args:
        config: the run; None for a published network.
        scales: factors of the input's size; None for the run's own.
        flip: also average with the mirrored image.
        sliding_window: side of the windows in pixels; 0 for none, None for the run's own.
    """
    own = Inference()
    if config is not None:
        options = config.segment
        own = Inference(
            mode=options.inference,
            window=(options.window, options.window),
            stride=(options.stride, options.stride),
            scales=tuple(options.scales),
            flip=config.evaluate.flip,
        )
    own = replace(own, flip=own.flip or flip, scales=tuple(scales) if scales else own.scales)
    if sliding_window is None:
        return own
    if not sliding_window:
        return replace(own, mode="whole")
    side = (sliding_window, sliding_window)
    return replace(own, mode="slide", window=side, stride=(-(-sliding_window * 2 // 3),) * 2)


class SegmentationPredictor(StreamPredictor[Segmentation]):
    """The class of each pixel of images of any size.

    Args:
        model: a segmenter.
        batch_size: not used: images are predicted one at a time.
        workers: threads that read images ahead; 0 reads each when it is due.
        scales: test-time augmentation: factors of the input's size, such as 0.75,1,1.25.
        flip: average with the mirrored image.
        sliding_window: side of overlapping windows that are predicted and averaged, in pixels; 0 for none.
    """

    def __init__(
        self,
        model: LoadedModel,
        *,
        batch_size: int = 1,
        workers: int = 0,
        scales: Sequence[float] | None = None,
        flip: bool = False,
        sliding_window: int | None = None,
    ) -> None:
        super().__init__(workers)
        self.model, self.classes = model, model.class_names
        self.inference = run_inference(model.config, scales, flip, sliding_window)
        self.settings = asdict(self.inference)

    def predict_image(self, image: Image.Image, path: str, name: str) -> Segmentation:
        """The class of each pixel of an RGB image."""
        label_map = self.inference.label_map(
            self.model.forward, image, self.model.preprocess, name=name
        ).numpy()
        dtype = np.uint8 if len(self.classes) <= 256 else np.uint16
        return Segmentation(path, label_map.astype(dtype, copy=False), self.classes, self.model.metadata)
