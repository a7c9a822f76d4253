from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.errors import TrainingError
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.segmentation.predict import ImageSegmenter, Inference
from metaformer.tasks.stream import ImageList

COLORS = ("red", "green", "blue")


class Brightest(nn.Module):
    """Tell which color a pixel has most of, at a quarter of the resolution."""

    num_classes = 3

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 4) * 20


@pytest.fixture
def segmenter() -> Callable[..., ImageSegmenter]:
    def make(workers: int = 0, model: nn.Module | None = None, **options: bool | str) -> ImageSegmenter:
        preprocess = DensePreprocess(64, 32, 4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        palette = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
        bundle = LoadedModel("net", model or Brightest(), preprocess, COLORS, "segment", palette)
        inference = Inference(**options)  # type: ignore[arg-type]
        return ImageSegmenter(bundle.forward, preprocess, COLORS, palette, inference, workers)

    return make


def stripes(width: int, height: int) -> Image.Image:
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 200
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(64, 48), (201, 97), (1, 1), (30, 300)])
def test_results_have_the_images_own_size(
    size: tuple[int, int], segmenter: Callable[..., ImageSegmenter]
) -> None:
    ((image, result, frame, _),) = segmenter().stream(ImageList([stripes(*size)]))
    assert (image.size, result.size, result.path, frame) == (size, size, "", None)
    assert result.label_map.dtype == np.uint8 and result.classes == COLORS
    assert (result.label_map == np.asarray(image).argmax(axis=2)).mean() > 0.93


def test_logits_that_are_no_numbers_name_the_frame(
    segmenter: Callable[..., ImageSegmenter], tmp_path: Path
) -> None:
    class Broken(Brightest):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.nan

    stripes(24, 16).save(tmp_path / "m.gif", save_all=True, append_images=[stripes(24, 16).rotate(180)])
    with pytest.raises(TrainingError, match=r"m\.gif, frame 0"):
        list(segmenter(model=Broken()).stream(ImageList(tmp_path)))
