import pytest
from PIL import Image, ImageDraw, ImageFont

from metaformer.visualize.canvas import (
    INK,
    MAX_SIDE,
    PANEL,
    STRONG,
    Bar,
    add_panel,
    draw_bars,
    limit_size,
    truncate,
    upscale_factor,
)


def test_text_is_truncated_to_the_width() -> None:
    draw, font = ImageDraw.Draw(Image.new("RGB", (9, 9))), ImageFont.load_default(14)
    assert truncate("sky", 100, draw, font) == "sky"
    cut = truncate("sky" * 20, 100, draw, font)
    assert cut.endswith("…") and draw.textlength(cut, font) <= 100
    assert truncate("sky", 0, draw, font) == "…"


@pytest.mark.parametrize(
    ("size", "factor"), [((128, 128), 3), ((320, 9), 1), ((1, 1), 320), ((1, 3000), 1), ((40, 1000), 4)]
)
def test_small_images_are_enlarged_up_to_a_height(size: tuple[int, int], factor: int) -> None:
    assert upscale_factor(size) == factor


@pytest.mark.parametrize(
    ("size", "limited"),
    [((1, 90_000), (1, MAX_SIDE)), ((60_000, 100), (MAX_SIDE, 50)), ((8000, 6000), (8000, 6000))],
)
def test_images_longer_than_jpeg_holds_are_reduced(size: tuple[int, int], limited: tuple[int, int]) -> None:
    assert limit_size(size) == limited


def test_a_narrow_image_is_centered_above_its_panel() -> None:
    canvas = add_panel(Image.new("RGB", (20, 10), (255, 0, 0)), 5, 100)
    assert canvas.size == (100, 15) and canvas.getpixel((50, 5)) == (255, 0, 0)
    assert canvas.getpixel((5, 5)) == PANEL == canvas.getpixel((50, 12))


def test_bars_have_their_share_of_the_width_and_a_mark() -> None:
    canvas = draw_bars(Image.new("L", (100, 50), 9), [Bar("", 0.5, STRONG), Bar("", 0.0, mark=0.25)])
    assert canvas.width == 400 and canvas.height > 200
    below = canvas.crop((0, 200, 400, canvas.height))
    row = [below.getpixel((x, below.height // 4)) for x in range(400)]
    assert row.count(STRONG) == pytest.approx(200, abs=12)
    assert below.getpixel((8 + round(0.25 * 384), below.height * 3 // 4)) == INK
