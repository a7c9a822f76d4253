from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from metaformer.errors import TrainingError
from metaformer.tasks.segmentation.tiled_inference import (
    LogitsFn,
    PILView,
    ResizeMatrix,
    TensorView,
    View,
    Window,
    bilinear_taps,
    output_range,
    single_window,
    sliding_windows,
    sum_strips,
    tile_windows,
)

SIDES = st.integers(1, 70)
CPU = torch.device("cpu")


def total(side: int, windows: list[Window]) -> Tensor:
    weight = torch.zeros(side)
    for window in windows:
        weight[window.start : window.stop] += window.weight
    return weight


@given(st.integers(1, 500), st.integers(1, 80), st.integers(1, 80))
@settings(max_examples=200, deadline=None)
def test_sliding_windows_cover_the_side_with_weight_one(side: int, window: int, stride: int) -> None:
    windows = sliding_windows(side, window, min(stride, window))
    torch.testing.assert_close(total(side, windows), torch.ones(side))
    assert all(len(one.weight) == min(side, window) for one in windows)


@pytest.mark.parametrize(
    ("side", "starts"), [(683, [0, 171]), (1024, [0, 341, 512]), (512, [0]), (300, [0])], ids=str
)
def test_sliding_windows_are_placed_as_in_mmsegmentation(side: int, starts: list[int]) -> None:
    windows = sliding_windows(side, 512, 341)
    assert [window.start for window in windows] == starts and windows[-1].stop == side


@given(st.integers(1, 150), st.integers(2, 6), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_tiles_cover_the_side_with_weight_one(blocks: int, tile: int, overlap: int) -> None:
    side, tile, overlap = blocks * 32, tile * 32, min(overlap, tile - 1) * 32
    tiles = tile_windows(side, tile, overlap)
    torch.testing.assert_close(total(side, tiles), torch.ones(side))
    assert all(tile.start % 32 == 0 and (tile.weight > 0).all() for tile in tiles)
    assert all(first.stop - second.start >= overlap for first, second in pairwise(tiles))


def test_tiles_are_blended_linearly() -> None:
    first, second = tile_windows(224, 128, 32)
    assert (second.start, first.stop) == (96, 128)
    assert (first.weight[:96] == 1).all() and (second.weight[32:] == 1).all()
    torch.testing.assert_close(first.weight[96:].diff(), torch.full((31,), -1 / 32))


@pytest.mark.parametrize(
    "windows",
    [single_window(7), sliding_windows(7, 7, 3), sliding_windows(7, 20, 20), tile_windows(96, 96, 32)],
)
def test_a_single_window_has_weight_exactly_one(windows: list[Window]) -> None:
    assert len(windows) == 1 and (windows[0].weight == 1).all()


@given(SIDES, SIDES)
@settings(max_examples=200, deadline=None)
def test_bilinear_taps_are_torchs(source: int, target: int) -> None:
    taps, weights = bilinear_taps(source, target)
    ours = torch.zeros(target, source).scatter_add_(1, taps, weights)
    torchs = F.interpolate(torch.eye(source)[None, :, :, None], (target, 1), mode="bilinear")[0, :, :, 0].T
    torch.testing.assert_close(ours, torchs, rtol=0, atol=2e-7)


@pytest.mark.parametrize(("source", "target"), [(1504, 6000), (6016, 6000), (100_000, 30), (3, 50_000)])
def test_bilinear_taps_of_large_sides_differ_by_rounding(source: int, target: int) -> None:
    values = torch.randn(source, generator=torch.Generator().manual_seed(0))
    taps, weights = bilinear_taps(source, target)
    torchs = F.interpolate(values[None, None, :, None], (target, 1), mode="bilinear")[0, 0, :, 0]
    step = values.diff().abs().max().item() * source * torch.finfo(torch.float32).eps
    torch.testing.assert_close((values[taps] * weights).sum(1), torchs, rtol=0, atol=1e-6 + step)


@given(SIDES, SIDES, SIDES, st.data())
@settings(max_examples=200, deadline=None)
def test_blocks_of_a_resize_matrix_are_rows_of_two_resizes(
    cells: int, side: int, pixels: int, data: st.DataObject
) -> None:
    matrix = ResizeMatrix(cells, Window(0, torch.ones(side)), side, pixels, CPU)
    values = torch.randn(1, 1, cells, 1, generator=torch.Generator().manual_seed(cells))
    whole = F.interpolate(F.interpolate(values, (side, 1), mode="bilinear"), (pixels, 1), mode="bilinear")
    start = data.draw(st.integers(0, pixels - 1))
    stop = data.draw(st.integers(start + 1, pixels))
    block, weights = matrix.block(start, stop)
    torch.testing.assert_close(
        weights @ values[0, 0, block, 0], whole[0, 0, start:stop, 0], rtol=0, atol=1e-6
    )


def test_output_range_includes_blended_neighbors() -> None:
    window = Window(4, torch.ones(4))
    assert output_range(window, 12, 12) == (4, 8)
    assert output_range(window, 12, 24) == (7, 17)
    assert output_range(window, 12, 1) == (0, 1) and output_range(window._replace(start=0), 12, 1) == (0, 0)


def test_rows_outside_the_output_range_are_zero() -> None:
    cells, weights = ResizeMatrix(1, Window(4, torch.ones(4)), 12, 12, CPU).block(2, 10)
    assert cells == slice(0, 1) and weights[:, 0].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]


def network(classes: int = 5) -> nn.Module:
    """Logits at stride 4 with a receptive field of 7×7 pixels."""
    torch.manual_seed(0)
    return nn.Conv2d(3, classes, 7, stride=4, padding=3).eval()


def image(height: int, width: int) -> Tensor:
    return torch.randn(3, height, width, generator=torch.Generator().manual_seed(height * 1000 + width))


def view(forward: LogitsFn, x: Tensor, rows: list[Window], columns: list[Window], *size: int) -> View:
    return View(forward, TensorView(x), (rows, columns), (size[0], size[1]))


@torch.inference_mode()
def logits_of(view: View, rows: int = 7, columns: int = 11) -> Tensor:
    """All logits of a view at the result's size, in small blocks."""
    blocks = []
    for start in range(0, view.height, rows):
        strips = view.row_block(start, min(start + rows, view.height))
        lefts = range(0, view.width, columns)
        blocks.append(torch.cat([sum_strips(strips, i, min(i + columns, view.width)) for i in lefts], dim=2))
    return torch.cat(blocks, dim=1)


@torch.inference_mode()
def resized(logits: Tensor, *sizes: tuple[int, int]) -> Tensor:
    for size in sizes:
        logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    return logits[0]


@given(SIDES, SIDES, SIDES, SIDES)
@settings(max_examples=60, deadline=None)
def test_one_window_is_two_resizes(high: int, wide: int, height: int, width: int) -> None:
    x, model = image(high, wide), network()
    found = logits_of(view(model, x, single_window(high), single_window(wide), height, width))
    expected = resized(model(x[None]), (high, wide), (height, width))
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)


def mmseg_slide(model: nn.Module, image: Tensor, window: int, stride: int) -> Tensor:
    """Sliding-window logits of mmsegmentation: summed at the input's size, divided by the count."""
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
def test_sliding_windows_are_averaged(
    high: int, wide: int, height: int, width: int, window: int, stride: int, mirrored: bool, rows: int
) -> None:
    x, model, stride = image(high, wide), network(), min(stride, window)
    windows = (sliding_windows(high, window, stride), sliding_windows(wide, window, stride))
    found = logits_of(View(model, TensorView(x), windows, (height, width), mirrored=mirrored), rows)
    expected = mmseg_slide(model, x.flip(-1) if mirrored else x, window, stride)
    expected = resized((expected.flip(-1) if mirrored else expected)[None], (height, width))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_tiles_differ_from_the_whole_at_their_borders_alone() -> None:
    x, model = image(256, 320), network()
    found = logits_of(view(model, x, tile_windows(256, 96, 32), tile_windows(320, 96, 32), 256, 320))
    expected = resized(model(x[None]), (256, 320))
    assert (found - expected).abs().max() < 0.3 * expected.std()
    assert ((found - expected).abs().amax(dim=0) < 1e-5).float().mean() > 0.6


def test_contradicting_tiles_leave_no_seam() -> None:
    calls = iter(range(100))

    def alternating(images: Tensor) -> Tensor:
        return torch.full((1, 1, *(side // 4 for side in images.shape[2:])), float(next(calls) % 2))

    tiles = tile_windows(160, 96, 32)
    found = logits_of(view(alternating, image(160, 160), tiles, tiles, 160, 160))[0]
    assert found.amin() == 0 and found.amax() == 1
    assert found.diff(dim=0).abs().max() < 1.01 / 32 and found.diff(dim=1).abs().max() < 1.01 / 32


@torch.inference_mode()
def test_logits_are_freed_when_no_later_block_needs_them() -> None:
    tiled = view(network(), image(480, 64), tile_windows(480, 96, 32), single_window(64), 480, 64)
    held = []
    for start in range(0, 480, 8):
        tiled.row_block(start, start + 8)
        held.append(sum(logits.shape[1] for row in tiled._open for logits in row.logits))
    assert len(tiled._waiting) == 0 and max(held) <= 96 // 4 + 32 // 4 + 2


def test_windows_without_a_pixel_of_the_result_are_skipped() -> None:
    calls = []

    def model(images: Tensor) -> Tensor:
        calls.append(images.shape)
        return images[:, :, ::4, ::4]

    windows = sliding_windows(512, 64, 64)
    assert logits_of(view(model, image(512, 512), windows, windows, 1, 1)).shape == (3, 1, 1)
    assert len(calls) == 4


def test_pil_view_converts_crops_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)

    def to_tensor(crop: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(crop)).permute(2, 0, 1).float()

    pil = PILView(Image.fromarray(pixels), to_tensor)
    assert pil.size == (20, 30)
    crop = pil.crop(slice(3, 17), slice(5, 6))
    assert torch.equal(crop[0], to_tensor(Image.fromarray(pixels[3:17, 5:6])))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("options", [{"name": "x.png"}, {}], ids=str)
def test_logits_that_are_not_finite_name_the_image(value: float, options: dict[str, str]) -> None:
    def broken(images: Tensor) -> Tensor:
        logits = torch.zeros(1, 5, 4, 4)
        logits[0, 2, 3, 1] = value
        return logits

    windows = (single_window(16), single_window(16))
    with pytest.raises(TrainingError, match=options.get("name", "the image")):
        View(broken, TensorView(image(16, 16)), windows, (16, 16), **options).row_block(0, 4)


def test_half_precision_is_resized_in_float32() -> None:
    half = view(
        lambda x: network()(x).bfloat16(), image(16, 16), single_window(16), single_window(16), 16, 16
    )
    assert logits_of(half).dtype == torch.float32
