import subprocess
import sys
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
from metaformer.tasks.segmentation.predict import Inference

LOOK = DensePreprocess(long_side=256, short_side=64)
GOLDEN = Path(__file__).parents[2] / "golden_dense" / "semfpn_tiny.safetensors"
OWN = DensePreprocess(long_side=None, short_side=None)


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


def resized(logits: Tensor, *sizes: tuple[int, int]) -> Tensor:
    for size in sizes:
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    return logits[0]


def assert_best(label_map: Tensor, scores: Tensor) -> None:
    """Each pixel's class has the highest score, but for rounding."""
    assert label_map.dtype == torch.uint8 and label_map.shape == scores.shape[1:]
    chosen = scores.gather(0, label_map.long()[None])[0]
    assert (scores.amax(dim=0) - chosen).max() < 1e-5
    assert (label_map == scores.argmax(dim=0)).float().mean() > 0.999


@pytest.mark.parametrize("size", [(100, 75), (75, 100), (333, 41), (1, 1), (1, 60), (700, 500)])
@torch.inference_mode()
def test_the_official_way(size: tuple[int, int]) -> None:
    x, model = image(*size), network()
    tensor = LOOK.transform()(x)
    expected = resized(model(tensor[None]), tuple(tensor.shape[1:]), (size[1], size[0]))
    assert_best(Inference().label_map(model, x, LOOK), expected)
    assert_best(Inference().label_map(model, tensor, original_size=(size[1], size[0])), expected)


@pytest.mark.parametrize("size", [(128, 160), (97, 131)])
def test_recorded_logits_give_the_recorded_classes(size: tuple[int, int]) -> None:
    tensors, at = load_file(GOLDEN), f"{size[0]}x{size[1]}"
    found = Inference().label_map(lambda _: tensors[f"logits.{at}"], torch.zeros(3, *size))
    assert torch.equal(found, tensors[f"pred.{at}"].view(size))


@pytest.mark.parametrize("mode", ["whole", "slide"])
@pytest.mark.parametrize("size", [(64, 64), (90, 70), (96, 33)])
def test_one_window_is_the_whole_bit_for_bit(mode: str, size: tuple[int, int]) -> None:
    x, model = image(*size), network()
    whole = Inference().label_map(model, x, OWN)
    slide = Inference("slide", window=(96, 96), stride=(64, 64)).label_map(model, x, OWN)
    tiled = Inference(tile_pixels=0, tile=96, overlap=32).label_map(model, x, OWN)
    assert torch.equal(whole, slide) and torch.equal(whole, tiled)


def test_windows_and_tiles_are_laid_over_what_is_larger() -> None:
    slide = Inference("slide", window=(64, 48), stride=(32, 24))
    assert [[span.start for span in spans] for spans in slide.grid(128, 96)] == [[0, 32, 64], [0, 24, 48]]
    tiled = Inference(tile_pixels=128 * 128, tile=96, overlap=32)
    assert [len(spans) for spans in tiled.grid(128, 128)] == [1, 1]
    assert [len(spans) for spans in tiled.grid(160, 128)] == [2, 2]
    assert [len(spans) for spans in tiled.grid(1600, 64)] == [25, 1]


@torch.inference_mode()
def test_views_average_probabilities() -> None:
    x, model = image(100, 75), network()
    total = torch.zeros(5, 75, 100)
    for scale in (0.5, 1.0, 1.75):
        tensor = DensePreprocess(long_side=int(256 * scale), short_side=int(64 * scale)).transform()(x)
        for flip in (False, True):
            logits = model(tensor.flip(-1)[None]).flip(-1) if flip else model(tensor[None])
            total += resized(logits, tuple(tensor.shape[1:]), (75, 100)).softmax(dim=0)
    inference = Inference(scales=(0.5, 1.0, 1.75), flip=True)
    assert inference.views == 6
    assert_best(inference.label_map(model, x, LOOK), total / 6)


@torch.inference_mode()
def test_a_mirrored_image_gives_the_mirrored_classes() -> None:
    x, model = image(96, 64), network()
    for mode in ("whole", "slide"):
        inference = Inference(mode, window=(64, 64), stride=(16, 16), flip=True)
        found = inference.label_map(model, x, OWN)
        mirror = inference.label_map(model, x.transpose(Image.Transpose.FLIP_LEFT_RIGHT), OWN)
        assert (found == mirror.flip(-1)).float().mean() > 0.999


def test_logits_of_any_resolution_will_do() -> None:
    tensor = torch.randn(1, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    for size in ((8, 8), (32, 32), (1, 1), (50, 20)):
        logits = F.interpolate(tensor, size, mode="bilinear")
        found = Inference().label_map(lambda _, logits=logits: logits, torch.zeros(3, 32, 32))
        assert_best(found, resized(logits, (32, 32)))


def test_many_classes_need_wider_numbers() -> None:
    logits = torch.zeros(1, 300, 2, 2)
    logits[:, 280] = 1
    found = Inference().label_map(lambda _: logits, torch.zeros(3, 8, 8))
    assert found.dtype == torch.int32 and (found == 280).all()
    assert Inference().label_map(lambda _: logits[:, :256], torch.zeros(3, 8, 8)).dtype == torch.uint8


def test_of_equal_classes_the_first_is_taken() -> None:
    assert not Inference().label_map(lambda _: torch.ones(1, 9, 4, 4), torch.zeros(3, 16, 16)).any()


def test_logits_that_are_not_finite_name_the_image() -> None:
    with pytest.raises(TrainingError, match=r"a/b\.png: the model's logits are not finite"):
        Inference().label_map(lambda x: x * float("nan"), torch.zeros(3, 8, 8), name="a/b.png")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "windows"}, "mode is 'windows'"),
        ({"window": (64, 64), "stride": (64, 65)}, "stride is .*gap"),
        ({"stride": (0, 10)}, "stride is"),
        ({"scales": ()}, "scales is"),
        ({"scales": (1.0, -0.5)}, "scales is"),
        ({"tile": 1000}, "tile is 1000"),
        ({"tile": 64, "overlap": 64}, "overlap 64"),
    ],
)
def test_options_that_cannot_be_are_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Inference(**options)


def test_an_image_needs_preprocessing_and_a_tensor_has_one_scale() -> None:
    with pytest.raises(ConfigError, match="preprocess"):
        Inference().label_map(network(), image(8, 8))
    with pytest.raises(ConfigError, match="scales"):
        Inference(scales=(1.0, 2.0)).label_map(network(), torch.zeros(3, 8, 8))


def resident(width: int, height: int, model: str, **options: int) -> tuple[int, int]:
    """MiB that an image of 150 classes takes above model and libraries, and at the end of it."""
    script = f"""
import resource
from metaformer.process import keep_freed_memory
keep_freed_memory()
import numpy as np, torch
from PIL import Image
from metaformer.data.resize_preprocess import DensePreprocess
from metaformer.tasks.segmentation.predict import Inference
torch.set_num_threads(2)
{model}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8))
image = small.resize(({width}, {height}), Image.Resampling.BILINEAR)
inference = Inference(**{options})
found = inference.label_map(model, image, DensePreprocess(long_side=None, short_side=None))
assert found.shape == ({height}, {width}) and found.max() > found.min()
print(before, peak())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after = (int(number) for number in done.stdout.split())
    return after - before, after


def test_a_large_image_is_done_in_little_memory() -> None:
    model = "torch.manual_seed(0); model = torch.nn.Conv2d(3, 150, 9, stride=4, padding=4)"
    taken, _ = resident(2000, 1500, model, tile=256, overlap=32, tile_pixels=0)
    assert taken < 200  # all logits at stride 4 would be 107 MiB, all of full size 1,717 MiB


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_8000_by_6000_pixels_of_150_classes_take_less_than_2_gib() -> None:
    model = """
from metaformer.factory import create_segmenter
model = create_segmenter("semantic_fpn", backbone="poolformer_s12", num_classes=150).eval()
model = model.to(memory_format=torch.channels_last).forward_head
"""
    taken, _ = resident(8000, 6000, model)
    assert taken < 2048
