"""Maps in colors and sheets of images."""

import numpy as np
import pytest
from PIL import Image

from metaformer.visualize.heat import color_map, draw_circle, heat_tile, overlay
from metaformer.visualize.sheet import SIDE, Tile, TileRow, draw_sheet, fit


def test_colors_are_brighter_the_larger_the_value() -> None:
    colors = color_map(np.linspace(0, 1, 256)[None])
    gray = np.asarray(colors.convert("L"), int)[0]
    assert colors.size == (256, 1) and (np.diff(gray) >= 0).all() and gray[-1] - gray[0] > 200


def test_an_overlay_dims_what_is_cold_and_colors_what_is_hot() -> None:
    image, heat = Image.new("RGB", (20, 10), (120, 120, 120)), np.zeros((10, 20), np.float32)
    heat[:, 10:] = 1
    pixels = np.asarray(overlay(image, heat), int)
    assert (pixels[:, :10] == pixels[0, 0]).all() and 50 < pixels[0, 0].mean() < 80
    assert pixels[0, 15].mean() > 150 and np.ptp(pixels[0, 0]) == 0 and np.ptp(pixels[0, 15]) > 50


@pytest.mark.parametrize(
    "box", [(2.0, 1.0, 12.0, 9.0), (3.0, 3.0, 3.001, 3.001), (-5.0, -5.0, 90.0, 90.0), None]
)
def test_boxes_are_drawn_in_the_images_pixels(box: tuple[float, float, float, float] | None) -> None:
    image, flat = Image.new("RGB", (20, 10)), np.zeros((10, 20), np.float32)
    tile = heat_tile(image, flat, box)
    assert tile.size == (SIDE, SIDE // 2)
    white = np.argwhere(np.asarray(tile).min(axis=2) == 255)
    if box == (2.0, 1.0, 12.0, 9.0):
        scale = SIDE / 20
        assert white.min(axis=0) == pytest.approx([1 * scale, 2 * scale], abs=1)
        assert white.max(axis=0) == pytest.approx([9 * scale, 12 * scale], abs=2)
    else:
        assert bool(len(white)) == (box is not None and box[0] > 0)


def test_a_circle_is_around_its_place() -> None:
    drawn = np.asarray(draw_circle(Image.new("RGB", (224, 112)), 0.25, 0.5))
    rows, columns = np.nonzero(drawn.min(axis=2) == 255)
    assert (rows.mean(), columns.mean()) == pytest.approx((56, 56), abs=1)


def test_a_sheet_has_all_rows_and_captions() -> None:
    tiles = [
        Tile(Image.new("RGB", (30, 60), color), "a caption that is far too long for it")
        for color in ("red", "blue")
    ]
    sheet = draw_sheet([TileRow("one", tiles), TileRow("two", tiles[:1])])
    pixels = np.asarray(sheet)
    assert fit(tiles[0].image).size == (SIDE // 2, SIDE)
    assert ((pixels == (255, 0, 0)).all(axis=2)).sum() == 2 * SIDE * SIDE // 2
    assert ((pixels == (0, 0, 255)).all(axis=2)).sum() == SIDE * SIDE // 2
