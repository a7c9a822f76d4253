import pytest
from PIL import Image, ImageDraw, ImageFont

from metaformer.visualize.text import PANEL, drawable, fitted, magnification, on_panel


def test_words_are_cut_to_the_room_there_is() -> None:
    draw, font = ImageDraw.Draw(Image.new("RGB", (9, 9))), ImageFont.load_default(14)
    assert fitted("sky", 100, draw, font) == "sky"
    cut = fitted("sky" * 20, 100, draw, font)
    assert cut.endswith("…") and draw.textlength(cut, font) <= 100
    assert fitted("sky", 0, draw, font) == "…"


@pytest.mark.parametrize(
    ("size", "times"), [((128, 128), 3), ((320, 9), 1), ((1, 1), 320), ((1, 3000), 1), ((40, 1000), 4)]
)
def test_small_images_are_enlarged_within_reason(size: tuple[int, int], times: int) -> None:
    assert magnification(size) == times


def test_a_narrow_image_lies_in_the_middle_of_its_panel() -> None:
    canvas = on_panel(Image.new("RGB", (20, 10), (255, 0, 0)), 5, 100)
    assert canvas.size == (100, 15)
    assert canvas.getpixel((50, 5)) == (255, 0, 0) and canvas.getpixel((5, 5)) == PANEL == canvas.getpixel(
        (50, 12)
    )


def test_images_longer_than_jpeg_holds_are_reduced() -> None:
    assert drawable((1, 90_000)) == (1, 30_000) and drawable((60_000, 100)) == (30_000, 50)
    assert drawable((8000, 6000)) == (8000, 6000)
