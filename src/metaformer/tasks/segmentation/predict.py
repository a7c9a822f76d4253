"""Prediction of label maps: whole images or sliding windows, with test-time augmentation."""

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
from metaformer.tasks.dense import MultiScaleFlip
from metaformer.tasks.outputs import Legend
from metaformer.tasks.segmentation.results import Segmentation
from metaformer.tasks.segmentation.tiled_inference import (
    TILE_GRID,
    ImageView,
    LogitsFn,
    LogitsStrip,
    PILView,
    TensorView,
    View,
    Window,
    single_window,
    sliding_windows,
    sum_strips,
    tile_windows,
)
from metaformer.tasks.stream import StreamPredictor

ROW_BLOCK = 32
"""Rows of a label map that are computed at once."""
CACHE_BYTES = 1 << 20
"""Bytes of logits at the label map's size that are computed at once on the CPU: they stay in its cache."""


@dataclass(frozen=True)
class InferenceConfig(MultiScaleFlip):
    """Whole images or sliding windows; probabilities of test-time augmentation are averaged."""

    mode: str = "whole"
    """`whole`, or `slide`: overlapping windows whose logits are averaged."""
    window: tuple[int, int] = (512, 512)
    """Height and width of a window of `slide`, in pixels of the network's input."""
    stride: tuple[int, int] = (341, 341)
    """Vertical and horizontal stride of the windows."""
    tile_pixels: int = 1 << 22
    """Largest input, in pixels, that `whole` computes at once; larger ones are tiled."""
    tile: int = 768
    """Height and width of a tile."""
    overlap: int = 128
    """Minimum overlap of neighboring tiles, in pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in ("whole", "slide"):
            raise ConfigError(f"mode is {self.mode!r}: choose whole or slide")
        for window, stride in zip(self.window, self.stride, strict=True):
            if not 1 <= stride <= window:
                raise ConfigError(f"stride is {self.stride}: it must lie between 1 and window {self.window}")
        if not 0 <= self.overlap < self.tile or self.tile % TILE_GRID or self.overlap % TILE_GRID:
            raise ConfigError(
                f"tile is {self.tile}, overlap {self.overlap}: both must be multiples of {TILE_GRID}, "
                "and the tile the larger"
            )

    def windows(self, height: int, width: int) -> tuple[list[Window], list[Window]]:
        """Windows along the height and along the width of an input of this size."""
        if self.mode == "slide":
            return (
                sliding_windows(height, self.window[0], self.stride[0]),
                sliding_windows(width, self.window[1], self.stride[1]),
            )
        if height * width <= self.tile_pixels:
            return single_window(height), single_window(width)
        return (
            tile_windows(height, self.tile, self.overlap),
            tile_windows(width, self.tile, self.overlap),
        )


@torch.inference_mode()
def predict_label_map(
    forward: LogitsFn,
    image: Image.Image | Tensor,
    inference: InferenceConfig,
    preprocess: DensePreprocess | None = None,
    original_size: tuple[int, int] | None = None,
    *,
    name: str | Path = "the image",
) -> Tensor:
    """Predict the class of each pixel: (H, W) on the CPU, uint8, or int32 for more than 256 classes.

    Args:
        forward: the network.
        image: an RGB image, or a normalized tensor (3, h, w), which is the network's input as it is.
        inference: windows and test-time augmentation.
        preprocess: preprocessing of an RGB image.
        original_size: height and width of the result; by default those of the image.
        name: name of the image in errors.

    Raises:
        TrainingError: logits are not finite.
        ConfigError: several scales of a tensor, or an RGB image without preprocessing.
    """
    own = image.shape[-2:] if isinstance(image, Tensor) else (image.height, image.width)
    height, width = original_size or own
    inputs: Iterator[ImageView] = inference.inputs(
        image, preprocess, lambda rgb, scaled: PILView(scaled.resize(rgb), scaled.to_tensor), TensorView
    )
    views = [
        View(forward, scaled, inference.windows(*scaled.size), (height, width), mirrored=mirrored, name=name)
        for scaled in inputs
        for mirrored in inference.flips
    ]
    starts = range(0, height, ROW_BLOCK)
    return torch.cat([_label_rows(views, start, min(start + ROW_BLOCK, height)) for start in starts])


def _label_rows(views: list[View], start: int, stop: int) -> Tensor:
    """Classes of rows `start` to `stop` of the result."""
    strips = [view.row_block(start, stop) for view in views]
    logits, width = strips[0][0].logits, views[0].width
    classes = len(logits)
    columns = max(16, CACHE_BYTES // (4 * classes * (stop - start)))
    step = width if logits.is_cuda else min(width, columns)
    labels = torch.empty(stop - start, width, dtype=torch.uint8 if classes <= 256 else torch.int32)
    for left in range(0, width, step):
        right = min(left + step, width)
        labels[:, left:right] = _scores(strips, left, right).max(dim=0).indices
    return labels


def _scores(strips: list[list[LogitsStrip]], left: int, right: int) -> Tensor:
    """Scores (K, rows, columns): the logits of a single view, or the sum of the views' probabilities."""
    if len(strips) == 1:
        return sum_strips(strips[0], left, right)
    scores = sum_strips(strips[0], left, right).softmax(dim=0)
    for view in strips[1:]:
        scores += sum_strips(view, left, right).softmax(dim=0)
    return scores


def run_inference(
    config: TrainConfig | None,
    scales: Sequence[float] | None = None,
    flip: bool = False,
    sliding_window: int | None = None,
) -> InferenceConfig:
    """Inference configuration of a run's evaluation, with some fields changed.

    Args:
        config: the run; None for a published network.
        scales: factors of the input size; None for the run's own.
        flip: also average with the mirror image.
        sliding_window: height and width of the windows; 0 for whole images, None for the run's own.

    Raises:
        ConfigError: a value out of range.
    """
    own = InferenceConfig()
    if config is not None:
        options = config.segment
        own = InferenceConfig(
            mode=options.inference,
            window=(options.window, options.window),
            stride=(options.stride, options.stride),
            scales=tuple(options.scales),
            flip=config.evaluate.flip,
        )
    own = own.changed(scales, flip)
    if sliding_window is None:
        return own
    if sliding_window < 0:
        raise ConfigError(f"sliding_window is {sliding_window}: it must be 0 or more")
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
        super().__init__(workers, model.preprocess.background)
        self.model, self.classes = model, model.class_names
        self.inference = run_inference(model.config, scales, flip, sliding_window)
        self.settings = asdict(self.inference)

    @property
    def legend(self) -> Legend:
        """The colors of the classes."""
        return Legend(colors=self.model.metadata)

    def predict_image(self, image: Image.Image, path: str, name: str) -> Segmentation:
        """The class of each pixel of an RGB image."""
        label_map = predict_label_map(
            self.model.forward, image, self.inference, self.model.preprocess, name=name
        ).numpy()
        dtype = np.uint8 if len(self.classes) <= 256 else np.uint16
        return Segmentation(path, label_map.astype(dtype, copy=False), self.classes, self.model.metadata)
