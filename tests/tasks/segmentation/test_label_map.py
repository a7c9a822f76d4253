import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from metaformer.errors import BadImage
from metaformer.tasks.segmentation import label_map
from metaformer.tasks.segmentation.label_map import LabelTable, count, ignore_index, read_label_map

NUMBERS = np.array([[0, 1, 2], [7, 200, 255]], dtype=np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, "PNG", **options)
    return path


def palette_image(numbers: np.ndarray) -> Image.Image:
    image = Image.fromarray(numbers).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([channel for i in range(256) for channel in (255 - i, i, 9)])
    return image


def test_gray_and_palette_give_the_numbers_in_the_file(tmp_path: Path) -> None:
    for name, image in (("gray", Image.fromarray(NUMBERS)), ("palette", palette_image(NUMBERS))):
        numbers = read_label_map(saved(tmp_path / name, image))
        assert numbers.dtype == np.uint8
        assert np.array_equal(numbers, NUMBERS)
    with_transparency = saved(tmp_path / "transparent", palette_image(NUMBERS), transparency=7)
    assert np.array_equal(read_label_map(with_transparency), NUMBERS)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_small_palettes_are_places_in_them(tmp_path: Path, bits: int) -> None:
    numbers = (np.arange(12, dtype=np.uint8) % 2**bits).reshape(3, 4)
    path = saved(tmp_path / "small", palette_image(numbers), bits=bits)
    assert np.array_equal(read_label_map(path), numbers)


def test_one_bit_is_two_classes(tmp_path: Path) -> None:
    numbers = np.array([[0, 1], [1, 1]], dtype=np.uint8)
    path = saved(tmp_path / "bits", Image.fromarray(numbers * 255).convert("1"))
    assert np.array_equal(read_label_map(path), numbers)


def test_sixteen_bits_are_kept(tmp_path: Path) -> None:
    numbers = np.array([[0, 255, 256], [1000, 40_000, 65535]], dtype=np.uint16)
    read = read_label_map(saved(tmp_path / "wide", Image.fromarray(numbers)))
    assert read.dtype == np.uint16
    assert np.array_equal(read, numbers)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colors_are_no_numbers(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / "colors.png", Image.new(mode, (4, 3)))
    with pytest.raises(BadImage, match=rf"colors\.png: is an {mode} image, no label map"):
        read_label_map(path)


def gray_of_few_bits(bits: int) -> bytes:
    """A gray PNG of 2 or 4 bits, which Pillow does not write."""
    stream = io.BytesIO()
    palette_image(np.zeros((2, 8), np.uint8)).save(stream, "PNG", bits=bits)
    content = bytearray(stream.getvalue())
    at = content.index(b"IHDR")
    content[at + 13] = 0  # the color type: gray
    content[at + 17 : at + 21] = zlib.crc32(content[at : at + 17]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize("bits", [2, 4])
def test_gray_that_would_be_stretched_is_refused(tmp_path: Path, bits: int) -> None:
    (tmp_path / "few.png").write_bytes(gray_of_few_bits(bits))
    with pytest.raises(BadImage, match=rf"few\.png: is gray of {bits} bits.*save 8 bits"):
        read_label_map(tmp_path / "few.png")


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = saved(
        tmp_path / "good.png", Image.fromarray(np.random.RandomState(0).randint(0, 9, (90, 90), "uint8"))
    )
    Image.new("L", (8, 8)).save(tmp_path / "photo.jpg")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:700])
    for name, reason in (
        ("none.png", "no such file"),
        (".", "is no ordinary file"),
        ("empty.png", "the file is empty"),
        ("text.png", "is no PNG"),
        ("photo.jpg", "label maps must be PNG"),
        ("cut.png", "truncated"),
    ):
        with pytest.raises(BadImage, match=reason) as caught:
            read_label_map(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    monkeypatch.setattr(label_map, "MAX_PIXELS", 8000)
    with pytest.raises(BadImage, match="90x90 is more than the 8,000 pixels allowed"):
        read_label_map(good)


def test_a_table_translates_and_refuses() -> None:
    table = LabelTable(numbers=(1, 2, 7), ignored=(0, 255))
    labels = table.translate(NUMBERS[:, :1], "x")
    assert labels.dtype == np.uint8 and labels.tolist() == [[255], [2]]
    with pytest.raises(BadImage) as caught:
        table.translate(NUMBERS, "far.png")
    told = "far.png: label 200 (1 pixel): classes are 1 to 2, 7, ignored 0, 255"
    assert str(caught.value) == told


def test_many_strange_numbers_are_cut_short() -> None:
    told = LabelTable(range(3), (255,)).complaint(dict.fromkeys(range(20), 4))
    assert told.startswith("label 3 (4 pixels), 4 (4 pixels), ") and "and 12 more: classes are 0 to 2" in told


def test_more_than_255_classes_need_wide_label_maps() -> None:
    assert ignore_index(255) == 255
    assert ignore_index(256) == 65535
    table = LabelTable(range(300), (65535,))
    numbers = np.array([[0, 255, 299, 65535]], dtype=np.uint16)
    labels = table.translate(numbers, "x")
    assert labels.dtype == np.uint16 and np.array_equal(labels, numbers)
    with pytest.raises(BadImage, match="label 300"):
        table.translate(numbers + np.uint16(1), "x")


@settings(deadline=None)
@given(
    numbers=arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 6))),
    known=st.lists(st.integers(0, 254), min_size=1, max_size=60, unique=True),
)
def test_translation_invents_nothing(numbers: np.ndarray, known: list[int]) -> None:
    table = LabelTable(known, (255,))
    strange = set(numbers.ravel().tolist()) - {*known, 255}
    counts = count(numbers)
    assert sum(counts.values()) == numbers.size
    assert bool(table.complaint(counts)) == bool(strange)
    if strange:
        with pytest.raises(BadImage):
            table.translate(numbers, "x")
        return
    labels = table.translate(numbers, "x")
    back = np.array([*known, *[255] * (256 - len(known))])
    assert np.array_equal(back[labels], numbers)
    pixels, ignored = table.pixels(counts)
    assert pixels == [int((labels == place).sum()) for place in range(len(known))]
    assert ignored == int((labels == 255).sum())
