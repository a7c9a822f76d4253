import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.errors import ConfigError, TrainingError
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.segmentation.predict import InferenceConfig, SegmentationPredictor, predict_label_map
from metaformer.tasks.segmentation.spec import SPEC
from metaformer.tasks.stream import ImageList

FITTED = DensePreprocess(long_side=256, short_side=64)
ORIGINAL = DensePreprocess(long_side=None, short_side=None)
GOLDEN = Path(__file__).parents[2] / "golden_dense" / "semfpn_tiny.safetensors"


def network(classes: int = 5) -> nn.Module:
    """Logits at stride 4."""
    torch.manual_seed(0)
    model = nn.Conv2d(3, classes, 7, stride=4, padding=3).eval()
    model.weight.data *= 4
    return model


def image(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width)
    small = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def label_map(forward: Any, x: Any, preprocess: DensePreprocess | None = None, **options: Any) -> Tensor:
    return predict_label_map(forward, x, InferenceConfig(**options), preprocess)


def resized(logits: Tensor, *sizes: tuple[int, int]) -> Tensor:
    for size in sizes:
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    return logits[0]


def assert_best(label_map: Tensor, scores: Tensor) -> None:
    """Each pixel's class has the highest score, up to rounding."""
    assert label_map.dtype == torch.uint8 and label_map.shape == scores.shape[1:]
    chosen = scores.gather(0, label_map.long()[None])[0]
    assert (scores.amax(dim=0) - chosen).max() < 1e-5
    assert (label_map == scores.argmax(dim=0)).float().mean() > 0.999


@pytest.mark.parametrize("size", [(100, 75), (75, 100), (333, 41), (1, 1), (1, 60), (700, 500)])
@torch.inference_mode()
def test_published_pipeline(size: tuple[int, int]) -> None:
    x, model, original = image(*size), network(), (size[1], size[0])
    tensor = FITTED.transform()(x)
    expected = resized(model(tensor[None]), tuple(tensor.shape[1:]), original)
    assert_best(label_map(model, x, FITTED), expected)
    assert_best(predict_label_map(model, tensor, InferenceConfig(), original_size=original), expected)


@pytest.mark.parametrize("size", [(128, 160), (97, 131)])
def test_golden_logits_give_golden_classes(size: tuple[int, int]) -> None:
    tensors, at = load_file(GOLDEN), f"{size[0]}x{size[1]}"
    found = label_map(lambda _: tensors[f"logits.{at}"], torch.zeros(3, *size))
    assert torch.equal(found, tensors[f"pred.{at}"].view(size))


@pytest.mark.parametrize("size", [(64, 64), (90, 70), (96, 33)])
def test_a_single_window_or_tile_is_the_whole_bit_for_bit(size: tuple[int, int]) -> None:
    x, model = image(*size), network()
    whole = label_map(model, x, ORIGINAL)
    for options in (
        {"mode": "slide", "window": (96, 96), "stride": (64, 64)},
        {"tile_pixels": 0, "tile": 96, "overlap": 32},
    ):
        assert torch.equal(whole, label_map(model, x, ORIGINAL, **options))


def test_windows_of_each_mode() -> None:
    slide = InferenceConfig("slide", window=(64, 48), stride=(32, 24))
    starts = [[window.start for window in windows] for windows in slide.windows(128, 96)]
    assert starts == [[0, 32, 64], [0, 24, 48]]
    tiled = InferenceConfig(tile_pixels=128 * 128, tile=96, overlap=32)
    for size, counts in (((128, 128), [1, 1]), ((160, 128), [2, 2]), ((1600, 64), [25, 1])):
        assert [len(windows) for windows in tiled.windows(*size)] == counts


@torch.inference_mode()
def test_probabilities_of_views_are_averaged() -> None:
    x, model, scales = image(100, 75), network(), (0.5, 1.0, 1.75)
    total = torch.zeros(5, 75, 100)
    for scale in scales:
        tensor = DensePreprocess(long_side=int(256 * scale), short_side=int(64 * scale)).transform()(x)
        for flip in (False, True):
            logits = model(tensor.flip(-1)[None]).flip(-1) if flip else model(tensor[None])
            total += resized(logits, tuple(tensor.shape[1:]), (75, 100)).softmax(dim=0)
    assert_best(label_map(model, x, FITTED, scales=scales, flip=True), total / 6)


@pytest.mark.parametrize("mode", ["whole", "slide"])
@torch.inference_mode()
def test_flip_makes_results_symmetric(mode: str) -> None:
    x, model = image(96, 64), network()
    options = {"mode": mode, "window": (64, 64), "stride": (16, 16), "flip": True}
    found = label_map(model, x, ORIGINAL, **options)
    mirror = label_map(model, x.transpose(Image.Transpose.FLIP_LEFT_RIGHT), ORIGINAL, **options)
    assert (found == mirror.flip(-1)).float().mean() > 0.999


@pytest.mark.parametrize("size", [(8, 8), (32, 32), (1, 1), (50, 20)])
def test_logits_of_any_resolution(size: tuple[int, int]) -> None:
    tensor = torch.randn(1, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = F.interpolate(tensor, size, mode="bilinear")
    assert_best(label_map(lambda _: logits, torch.zeros(3, 32, 32)), resized(logits, (32, 32)))


def test_more_than_256_classes_are_int32() -> None:
    logits = torch.zeros(1, 300, 2, 2)
    logits[:, 280] = 1
    found = label_map(lambda _: logits, torch.zeros(3, 8, 8))
    assert found.dtype == torch.int32 and (found == 280).all()
    assert label_map(lambda _: logits[:, :256], torch.zeros(3, 8, 8)).dtype == torch.uint8


def test_the_first_of_equal_classes_wins() -> None:
    assert not label_map(lambda _: torch.ones(1, 9, 4, 4), torch.zeros(3, 16, 16)).any()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"mode": "windows"}, "mode"),
        ({"window": (64, 64), "stride": (64, 65)}, "stride"),
        ({"stride": (0, 10)}, "stride"),
        ({"scales": ()}, "scales"),
        ({"scales": (1.0, -0.5)}, "scales"),
        ({"tile": 1000}, "tile"),
        ({"tile": 64, "overlap": 64}, "overlap"),
    ],
)
def test_invalid_options(options: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"{field} (is )?"):
        InferenceConfig(**options)


def test_an_image_needs_preprocessing_and_a_tensor_has_one_scale() -> None:
    with pytest.raises(ConfigError, match="preprocess"):
        label_map(network(), image(8, 8))
    with pytest.raises(ConfigError, match="scales"):
        label_map(network(), torch.zeros(3, 8, 8), scales=(1.0, 2.0))


def peak_memory(width: int, height: int, model: str, **options: int) -> tuple[int, int]:
    """MiB that an image of 150 classes takes beyond model and libraries, and in total."""
    script = f"""
import resource
from metaformer.process import keep_freed_memory
keep_freed_memory()
import numpy as np, torch
from PIL import Image
from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.tasks.segmentation.predict import InferenceConfig, predict_label_map
torch.set_num_threads(2)
{model}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
image = small.resize(({width}, {height}), Image.Resampling.BILINEAR)
inference = InferenceConfig(**{options})
found = predict_label_map(model, image, inference, DensePreprocess(long_side=None, short_side=None))
assert found.shape == ({height}, {width}) and found.max() > found.min()
print(before, peak())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after = (int(number) for number in done.stdout.split())
    return after - before, after


def test_memory_of_a_large_image() -> None:
    model = "torch.manual_seed(0); model = torch.nn.Conv2d(3, 150, 9, stride=4, padding=4)"
    taken, _ = peak_memory(2000, 1500, model, tile=256, overlap=32, tile_pixels=0)
    assert taken < 200  # all logits at stride 4 would be 107 MiB, all of full size 1,717 MiB


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_8000_by_6000_pixels_of_150_classes_take_less_than_2_gib() -> None:
    model = """
from metaformer.factory import create_segmenter
model = create_segmenter("semantic_fpn", backbone="poolformer_s12", num_classes=150).eval()
model = model.to(memory_format=torch.channels_last).forward_head
"""
    taken, _ = peak_memory(8000, 6000, model)
    assert taken < 2048


COLORS = ("red", "green", "blue")


class Brightest(nn.Module):
    """Logits of the color that a pixel has most of, at stride 4."""

    num_classes = 3

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 4) * 20


def predictor(forward: Callable[[Tensor], Tensor] | None = None) -> SegmentationPredictor:
    network, preprocess = Brightest(), DensePreprocess(64, 32, 4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    spec = replace(SPEC, forward=lambda model: forward or model)
    palette = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    return SegmentationPredictor(LoadedModel(spec, "net", network, preprocess, COLORS, palette))


def stripes(width: int, height: int) -> Image.Image:
    """Red on the left, blue on the right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = pixels[:, width // 2 :, 2] = 200
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(64, 48), (201, 97), (1, 1), (30, 300)])
def test_predictions_have_the_images_own_size(size: tuple[int, int]) -> None:
    ((result, image, frame, *_),) = predictor().predict(ImageList([stripes(*size)]))
    assert image is not None
    assert (image.size, result.size, result.path, frame) == (size, size, "", None)
    assert result.label_map.dtype == np.uint8 and result.classes == COLORS
    assert (result.label_map == np.asarray(image).argmax(axis=2)).mean() > 0.93


def test_logits_that_are_not_finite_name_the_frame(tmp_path: Path) -> None:
    stripes(24, 16).save(tmp_path / "m.gif", save_all=True, append_images=[stripes(24, 16).rotate(180)])
    with pytest.raises(TrainingError, match=r"m\.gif, frame 0"):
        list(predictor(lambda x: x * torch.nan).predict(ImageList(tmp_path)))
