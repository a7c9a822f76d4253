from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from metaformer.errors import TrainingError
from metaformer.tasks.segmentation.predict import _logits
from metaformer.tasks.segmentation.tiled_inference import ImageSight, Look, TensorSight, tiles, whole, windows

SIDES = st.integers(1, 70)


def network(classes: int = 5) -> nn.Module:
    """Logits at stride 4 that depend on a neighborhood of 7×7 pixels and on nothing else."""
    torch.manual_seed(0)
    return nn.Conv2d(3, classes, 7, stride=4, padding=3).eval()


def image(height: int, width: int) -> Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


def plane(look: Look, band: int = 7, columns: int = 11) -> Tensor:
    """All of a look's logits at the result's size, put together from small parts."""
    rows = []
    for start in range(0, look.height, band):
        strips = look.band(start, min(start + band, look.height))
        parts = [(left, min(left + columns, look.width)) for left in range(0, look.width, columns)]
        rows.append(torch.cat([_logits(strips, left, right) for left, right in parts], dim=2))
    return torch.cat(rows, dim=1)


def resized(logits: Tensor, *sizes: tuple[int, int]) -> Tensor:
    for size in sizes:
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    return logits[0]


@given(SIDES, SIDES, SIDES, SIDES)
@settings(max_examples=60, deadline=None)
@torch.inference_mode()
def test_the_whole_in_bands_is_two_resizes(high: int, wide: int, height: int, width: int) -> None:
    x, model = image(high, wide), network()
    look = Look(model, TensorSight(x), (whole(high), whole(wide)), (height, width))
    expected = resized(model(x[None]), (high, wide), (height, width))
    torch.testing.assert_close(plane(look), expected, rtol=0, atol=5e-6)


def slid(model: nn.Module, image: Tensor, window: int, stride: int) -> Tensor:
    """As mmsegmentation does: sum the windows' logits at the input's size, divide by how many there were."""
    _, high, wide = image.shape
    total, count = torch.zeros(5, high, wide), torch.zeros(high, wide)
    tall, broad = min(window, high), min(window, wide)
    for top in [min(i, high - tall) for i in range(0, high - tall + stride, stride)]:
        for left in [min(i, wide - broad) for i in range(0, wide - broad + stride, stride)]:
            part = image[None, :, top : top + tall, left : left + broad]
            total[:, top : top + tall, left : left + broad] += resized(model(part), (tall, broad))
            count[top : top + tall, left : left + broad] += 1
    return total / count


@given(SIDES, SIDES, SIDES, SIDES, st.integers(8, 40), st.integers(4, 40), st.booleans(), st.integers(1, 40))
@settings(max_examples=100, deadline=None)
@example(44, 44, 44, 44, 32, 22, False, 32)
@torch.inference_mode()
def test_windows_are_averaged(
    high: int, wide: int, height: int, width: int, window: int, stride: int, mirrored: bool, band: int
) -> None:
    x, model, stride = image(high, wide), network(), min(stride, window)
    grid = (windows(high, window, stride), windows(wide, window, stride))
    found = plane(Look(model, TensorSight(x), grid, (height, width), mirrored=mirrored), band)
    expected = slid(model, x.flip(-1) if mirrored else x, window, stride)
    expected = resized((expected.flip(-1) if mirrored else expected)[None], (height, width))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.inference_mode()
def test_tiles_see_what_the_whole_sees_but_at_their_borders() -> None:
    x, model = image(256, 320), network()
    found = plane(Look(model, TensorSight(x), (tiles(256, 96, 32), tiles(320, 96, 32)), (256, 320)))
    expected = resized(model(x[None]), (256, 320))
    assert (found - expected).abs().max() < 0.3 * expected.std()
    assert ((found - expected).abs().amax(dim=0) < 1e-5).float().mean() > 0.6


@torch.inference_mode()
def test_tiles_that_disagree_leave_no_seam() -> None:
    calls = iter(range(100))

    def contrary(images: Tensor) -> Tensor:
        return torch.full((1, 1, *(side // 4 for side in images.shape[2:])), float(next(calls) % 2))

    grid = (tiles(160, 96, 32), tiles(160, 96, 32))
    found = plane(Look(contrary, TensorSight(image(160, 160)), grid, (160, 160)))[0]
    assert found.amin() == 0 and found.amax() == 1
    assert found.diff(dim=0).abs().max() < 1.01 / 32 and found.diff(dim=1).abs().max() < 1.01 / 32


@torch.inference_mode()
def test_maps_go_when_no_band_needs_them() -> None:
    x, model = image(480, 64), network()
    look = Look(model, TensorSight(x), (tiles(480, 96, 32), whole(64)), (480, 64))
    held = []
    for start in range(0, 480, 8):
        look.band(start, start + 8)
        held.append(sum(logits.shape[1] for row in look._open for logits in row.maps))
    assert len(look._waiting) == 0 and max(held) <= 96 // 4 + 32 // 4 + 2


@torch.inference_mode()
def test_windows_without_a_pixel_of_the_result_are_left_out() -> None:
    calls = []

    def model(images: Tensor) -> Tensor:
        calls.append(images.shape)
        return images[:, :, ::4, ::4]

    grid = (windows(512, 64, 64), windows(512, 64, 64))
    found = plane(Look(model, TensorSight(image(512, 512)), grid, (1, 1)))
    assert found.shape == (3, 1, 1) and len(calls) == 4


def test_a_part_of_an_image_is_made_numbers_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)

    def finish(part: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(part)).permute(2, 0, 1).float()

    sight = ImageSight(Image.fromarray(pixels), finish)
    assert sight.size == (20, 30)
    part = sight.cut(slice(3, 17), slice(5, 6))
    assert torch.equal(part[0], finish(Image.fromarray(pixels[3:17, 5:6])))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_not_finite_name_the_image(value: float) -> None:
    def broken(images: Tensor) -> Tensor:
        logits = torch.zeros(1, 5, 4, 4)
        logits[0, 2, 3, 1] = value
        return logits

    look = Look(broken, TensorSight(image(16, 16)), (whole(16), whole(16)), (16, 16), name="x.png")
    with pytest.raises(TrainingError, match=r"x\.png: .*not finite"):
        look.band(0, 4)


def test_half_precision_is_resized_in_full() -> None:
    model: Callable[[Tensor], Tensor] = lambda images: network()(images).to(torch.bfloat16)  # noqa: E731
    with torch.inference_mode():
        found = plane(Look(model, TensorSight(image(16, 16)), (whole(16), whole(16)), (16, 16)))
    assert found.dtype == torch.float32


def test_a_path_names_an_image_too(tmp_path: Path) -> None:
    look = Look(lambda images: images * float("nan"), TensorSight(image(4, 4)), (whole(4), whole(4)), (4, 4))
    with pytest.raises(TrainingError, match="the image"):
        look.band(0, 1)
