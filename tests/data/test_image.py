"""Reading and distorting images."""

import contextlib
import io
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from metaformer.data.image import FORMATS, decode_image, image_in_memory, image_size, read_image
from metaformer.data.photometric import photometric_distortion
from metaformer.errors import BadImage, DataError


def gradient(height: int = 24, width: int = 32) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), 0 * x + 90], -1).astype(np.uint8)


def write(path: Path, image: Image.Image, kind: str = "PNG", **options: object) -> Path:
    image.save(path, kind, **options)
    return path


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(gradient()).save(buffer, kind)
    return buffer.getvalue()


def png(width: int, height: int, rest: bytes = b"") -> bytes:
    """A PNG whose header claims any size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rest) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("extension", ["", ".jpg", ".png", ".txt"])
def test_format_is_found_by_content(tmp_path: Path, kind: str, extension: str) -> None:
    path = tmp_path / f"image{extension}"
    path.write_bytes(encoded(kind))
    image = read_image(path)
    assert (image.mode, image.size) == ("RGB", (32, 24))
    error = np.abs(np.asarray(image).astype(int) - gradient()).mean()
    assert error < (12 if kind in ("JPEG", "WEBP", "GIF") else 1e-9)


def test_other_formats_are_not_decoded(tmp_path: Path) -> None:
    for kind in ("TIFF", "PPM", "ICO", "TGA", "PCX"):
        path = tmp_path / "image.png"
        path.write_bytes(encoded(kind))
        with pytest.raises(BadImage, match="not a JPEG, PNG, WebP, BMP or GIF"):
            read_image(path)


def test_modes(tmp_path: Path) -> None:
    rgb = Image.fromarray(gradient())
    gray = np.asarray(rgb.convert("L"))
    alpha = Image.fromarray(np.full(gray.shape, 70, np.uint8))
    as_gray = np.stack([gray] * 3, -1)
    bits = np.stack([np.asarray(rgb.convert("1")).astype(np.uint8) * 255] * 3, -1)
    palette = rgb.quantize(64)
    with_alpha = rgb.copy()
    with_alpha.putalpha(alpha)
    gray_alpha = rgb.convert("L")
    gray_alpha.putalpha(alpha)
    path = tmp_path / "image"
    # transparency is dropped: the colors below it come out, as in torchvision and timm
    for image, expected, options in [
        (rgb.convert("L"), as_gray, {}),
        (gray_alpha, as_gray, {}),
        (rgb.convert("1"), bits, {}),
        (with_alpha, gradient(), {}),
        (palette, np.asarray(palette.convert("RGB")), {}),
        (palette, np.asarray(palette.convert("RGB")), {"transparency": 3}),
        (palette, np.asarray(palette.convert("RGB")), {"transparency": bytes(range(64))}),
        (rgb, gradient(), {"transparency": (0, 0, 90)}),
    ]:
        read = read_image(write(path, image, **options))
        assert read.mode == "RGB"
        assert np.array_equal(np.asarray(read), expected), (image.mode, options)


def test_transparent_pixels_are_blended_on_a_background(tmp_path: Path) -> None:
    clear = Image.fromarray(gradient())
    clear.putalpha(Image.fromarray(np.arange(768, dtype=np.uint16).reshape(24, 32).astype(np.uint8)))
    palette, color, path = clear.convert("RGB").quantize(64), (10, 200, 30), tmp_path / "image"
    for image, options in [
        (clear, {}),
        (clear.convert("LA"), {}),
        (palette, {"transparency": 3}),
        (palette, {"transparency": bytes(range(64))}),
        (clear.convert("RGB"), {"transparency": (0, 0, 90)}),
        (clear.convert("L"), {"transparency": 10}),
        (clear.convert("1"), {"transparency": 1}),
        (clear.convert("RGB"), {}),
    ]:
        with Image.open(write(path, image, **options)) as opened:
            below = Image.new("RGBA", opened.size, color)
            expected = np.asarray(Image.alpha_composite(below, opened.convert("RGBA")).convert("RGB"))
            for blended in (read_image(path, background=color), image_in_memory(opened, background=color)):
                assert blended.mode == "RGB" and np.array_equal(np.asarray(blended), expected)
        assert ("hides_colors" in read_image(path).info) == (image.mode in ("RGBA", "LA") or bool(options))
    array = image_in_memory(np.asarray(clear), background=color)
    assert array.tobytes() == image_in_memory(clear, background=color).tobytes()


def test_a_clear_value_of_sixteen_bit_gray_is_blended(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 25700], [257, 65535, 0]], np.uint16)
    path = write(tmp_path / "deep.png", Image.fromarray(deep), transparency=257)
    assert np.asarray(read_image(path))[..., 0].tolist() == [[0, 1, 100], [1, 255, 0]]
    blended = np.asarray(read_image(path, background=(9, 8, 7)))
    assert blended[..., 0].tolist() == [[0, 9, 100], [9, 255, 0]] and blended[0, 1].tolist() == [9, 8, 7]


def test_cmyk_jpeg(tmp_path: Path) -> None:
    flat = Image.new("RGB", (16, 16), (200, 60, 20)).convert("CMYK")
    image = np.asarray(read_image(write(tmp_path / "a.jpg", flat, "JPEG", quality=100))).astype(int)
    assert np.abs(image - (200, 60, 20)).max() <= 3


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 256 * 4).astype(np.uint16).reshape(4, 256)
    read = np.asarray(read_image(write(tmp_path / "deep.png", Image.fromarray(deep))))
    assert np.abs(read[..., 0].astype(float) - deep / 257).max() <= 0.5
    assert (read[..., 0] == read[..., 2]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_orientation(tmp_path: Path, orientation: int, kind: str) -> None:
    from PIL import ImageOps

    image = Image.fromarray(gradient(16, 48))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / "a", image, kind, exif=exif)
    with Image.open(path) as opened:
        expected = ImageOps.exif_transpose(opened).convert("RGB")
    read = read_image(path)
    assert read.size == ((16, 48) if orientation >= 5 else (48, 16)) == expected.size
    assert np.array_equal(np.asarray(read), np.asarray(expected))


@pytest.mark.parametrize("orientation", range(1, 10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_size_from_the_header(tmp_path: Path, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {} if kind in ("BMP", "GIF") else {"exif": exif}
    Image.new("RGB", (7, 4)).save(tmp_path / "image", kind, **options)
    assert image_size(tmp_path / "image") == read_image(tmp_path / "image").size


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_jpegs_pixels_outlive_its_file(tmp_path: Path, orientation: int) -> None:
    """They are returned without a copy, and nothing else of the file is."""
    path, exif = tmp_path / "image.jpg", Image.Exif()
    exif[0x0112] = orientation
    original = Image.linear_gradient("L").convert("RGB").crop((0, 0, 60, 30))
    original.save(path, exif=exif, dpi=(300, 300))
    with Image.open(path) as opened:
        expected = np.asarray(opened.convert("RGB"))
    image = read_image(path)
    path.unlink()
    assert np.array_equal(np.asarray(image), expected if orientation == 1 else np.rot90(expected, -1))
    assert image.info == {}
    image.putpixel((0, 0), (1, 2, 3))
    assert image.resize((5, 5)).size == (5, 5) and image.copy().tobytes() == image.tobytes()


def test_damaged_exif_does_not_spoil_the_image(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.jpg", Image.fromarray(gradient()), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x09junk"
    )
    assert read_image(path).size == (32, 24)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animations_first_frame_is_used_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    path = write(tmp_path / "a", frames[0], kind, save_all=True, append_images=frames[1:])
    image = read_image(path)
    red, green, blue = np.asarray(image).astype(int)[4, 4]
    assert red > 240 and green < 15 and blue < 15 and image.info == {"animated": True}
    assert "first frame" in caplog.text and str(path) in caplog.text


def test_still_images_are_silent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for kind in FORMATS:
        assert read_image(write(tmp_path / "a", Image.fromarray(gradient()), kind)).info == {}
    assert not caplog.text


@pytest.mark.parametrize("read", [read_image, image_size])
def test_paths_that_are_no_file(tmp_path: Path, read: Callable[[str | Path], object]) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path, reason in (("none.png", "no such file"), ("", "no ordinary"), ("pipe.png", "no ordinary")):
        with pytest.raises(BadImage, match=reason):
            read(tmp_path / path)
    with pytest.raises(BadImage):
        read("a\0b.png")
    (tmp_path / "text").write_text("no image")
    with pytest.raises(BadImage, match="text: not a JPEG"):
        read(tmp_path / "text")


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"hello", "not a JPEG"),
        (b"<!DOCTYPE html><html></html>", "not a JPEG"),
        (encoded("JPEG")[:-200], "damaged or truncated"),
        (encoded("PNG")[:-40], "damaged or truncated"),
        (encoded("PNG")[:20], "damaged or truncated"),
        (png(30, 30, b"no deflate stream"), "damaged or truncated"),
        (flipped(encoded("PNG"), encoded("PNG").index(b"IDAT") + 8), "damaged"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(BadImage, match=reason) as caught:
        read_image(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("side", [7_100, 12_000, 20_000, 60_000])
def test_too_many_pixels_are_refused_from_the_header(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png(side, side))
    start = time.perf_counter()
    with pytest.raises(BadImage, match="50,000,000 pixels"):
        read_image(path)
    assert time.perf_counter() - start < 0.1


def test_pixel_limit_is_the_callers(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", Image.fromarray(gradient()))
    assert read_image(path, max_pixels=32 * 24).size == (32, 24)
    with pytest.raises(BadImage, match="32x24"):
        read_image(path, max_pixels=32 * 24 - 1)


@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_and_open_files_decode_as_files_do(tmp_path: Path, kind: str) -> None:
    content = encoded(kind)
    path = tmp_path / "a"
    path.write_bytes(content)
    expected = np.asarray(read_image(path))
    assert np.array_equal(np.asarray(decode_image(content, "a")), expected)
    with path.open("rb") as stream:
        assert np.array_equal(np.asarray(decode_image(stream, "a")), expected)
        assert not stream.closed


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "empty"), (b"x", "not a JPEG"), (png(9, 9), "damaged")]
)
def test_errors_of_bytes_have_their_name(content: bytes, reason: str) -> None:
    for data in (content, io.BytesIO(content)):
        with pytest.raises(BadImage, match=rf"^train/3\.parquet: ant/7\.jpg: .*{reason}"):
            decode_image(data, "train/3.parquet: ant/7.jpg")


NO_MEMORY = """
import resource, sys
from metaformer.data.image import read_image
from metaformer.errors import DataError
read_image(sys.argv[2])  # what decoders load and keep comes before the limit
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20),) * 2)
try:
    read_image(sys.argv[1])
except DataError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory as Linux does")
def test_lack_of_memory_is_not_the_images_fault(tmp_path: Path) -> None:
    large = write(tmp_path / "large.png", Image.new("1", (7000, 7000)))
    small = write(tmp_path / "small.png", Image.new("1", (8, 8)))
    args = [sys.executable, "-c", NO_MEMORY, str(large), str(small)]
    output = subprocess.run(args, capture_output=True, text=True, timeout=60, check=True).stdout
    assert output.startswith(f"DataError not enough memory to decode {large}: "), output


def test_too_many_open_files_are_not_the_images_fault(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", Image.fromarray(gradient()))
    opened = []
    try:
        with contextlib.suppress(OSError):
            import resource

            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, soft), hard))
            while True:
                opened.append(os.open(path, os.O_RDONLY))
        with pytest.raises(DataError, match="too many open files") as caught:
            read_image(path)
        assert not isinstance(caught.value, BadImage)
    finally:
        for number in opened:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


SEEDS = [encoded(kind) for kind in FORMATS]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.sampled_from(SEEDS),
    edits=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=12),
    cut=st.integers(0, 4000),
)
def test_only_bad_image_escapes(tmp_path: Path, seed: bytes, edits: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(seed)
    for position, value in edits:
        content[position % len(content)] = value
    path = tmp_path / "fuzz"
    path.write_bytes(content[: max(cut, 1)])
    try:
        assert read_image(path).mode == "RGB"
    except BadImage as error:
        assert error.reason and error.path == path


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP"]),
    st.binary(),
)
def test_noise_is_bad(tmp_path: Path, start: bytes, noise: bytes) -> None:
    path = tmp_path / "noise"
    path.write_bytes(start + noise)
    with contextlib.suppress(BadImage):
        read_image(path)


def colors(color: tuple[int, int, int], count: int) -> list[np.ndarray]:
    image = Image.new("RGB", (4, 4), color)
    random.seed(0)
    return [np.array(photometric_distortion(image))[0, 0].astype(int) for _ in range(count)]


def test_brightness_and_contrast_are_bounded() -> None:
    values = colors((128, 128, 128), 400)
    assert all(np.ptp(value) <= 1 for value in values)  # gray stays gray
    levels = [value[0] for value in values]
    assert 40 <= min(levels) < 80 and 200 < max(levels) <= 245
    assert 0.15 < np.mean([level == 128 for level in levels]) < 0.35  # neither brightness nor contrast


def test_hue_is_bounded() -> None:
    values = colors((200, 40, 40), 200)
    assert len({tuple(value) for value in values}) > 100
    assert all(red >= max(green, blue) for red, green, blue in values)  # 36 degrees at most: red leads


def in_memory(path: Path) -> list[tuple[str, Image.Image]]:
    """An image file as opened, loaded, copied and pickled images give it."""
    with Image.open(path) as closed:
        closed.load()
    with Image.open(path) as opened:
        copied = opened.copy()
    images = {"opened": Image.open(path), "loaded": closed, "copied": copied}
    return [(name, image_in_memory(image)) for name, image in images.items()]


def same(one: Image.Image, other: Image.Image) -> bool:
    return (one.mode, one.size, one.tobytes()) == (other.mode, other.size, other.tobytes())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_images_in_memory_are_turned_as_files_are(tmp_path: Path, orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = write(tmp_path / "a", Image.fromarray(gradient(16, 48)), kind, exif=exif)
    for name, image in in_memory(path):
        assert same(image, read_image(path)), name
        assert same(image_in_memory(image), image), "upright ones stay"


DEEP = np.linspace(0, 65535, 256 * 4).astype(np.uint16).reshape(4, 256)


@pytest.mark.parametrize("mode", ["I;16", "L", "1", "P", "LA", "RGBA", "RGB", "CMYK"])
def test_images_in_memory_become_rgb_as_files_do(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(DEEP) if mode == "I;16" else Image.fromarray(gradient()).convert(mode)
    path = write(tmp_path / "a", image, "JPEG" if mode == "CMYK" else "PNG")
    for name, found in in_memory(path):
        assert same(found, read_image(path)), name
    if mode != "CMYK":
        assert same(image_in_memory(image), read_image(path))


def test_the_callers_image_stays_as_it_is(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for kind in ("JPEG", "PNG"):
        image = Image.open(write(tmp_path / kind, Image.fromarray(gradient()), kind, exif=exif))
        before = image.tobytes()
        found = image_in_memory(image)
        found.paste((1, 2, 3), (0, 0, *found.size))
        assert image.tobytes() == before and image.getexif()[0x0112] == 6


def test_arrays_are_images() -> None:
    pixels = gradient()
    assert np.array_equal(np.asarray(image_in_memory(pixels)), pixels)
    assert np.array_equal(np.asarray(image_in_memory(pixels[::-1, ::-1])), pixels[::-1, ::-1])
    assert np.array_equal(np.asarray(image_in_memory(np.dstack([pixels, pixels[..., 0]]))), pixels)
    for gray in (pixels[..., 0], DEEP, DEEP.astype(np.int32)):
        assert same(image_in_memory(gray), image_in_memory(Image.fromarray(gray)))
    assert np.asarray(image_in_memory(DEEP))[..., 1].max() == 255


@pytest.mark.parametrize(
    "array",
    [
        gradient() / 255,
        gradient().astype(np.int64),
        gradient().transpose(2, 0, 1),
        gradient()[None],
        gradient()[..., :2],
        gradient().astype(np.uint16),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((), np.uint8),
        np.array([["a"]]),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"is an array \(.*\) of .*: give \(H, W, 3\) of uint8"):
        image_in_memory(array)


def test_a_damaged_image_in_memory_is_named(tmp_path: Path) -> None:
    content = encoded("PNG")
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with (
        Image.open(tmp_path / "a.png") as image,
        pytest.raises(BadImage, match=r"the image: (damaged or truncated|cannot be read)"),
    ):
        image_in_memory(image)


def test_a_clear_value_of_scaled_pixels_is_blended(tmp_path: Path) -> None:
    """Pillow scales the pixels of 2 and 4 bits and of 16-bit colors, but not their clear value."""
    for bits, scale in ((2, 85), (4, 17)):
        path = keyed_png(
            tmp_path / "few.png", (2, 1), bits, 0, bytes([0, 0b01_10_0000 if bits == 2 else 0x12]), b"\0\1"
        )
        assert np.asarray(read_image(path))[0, :, 0].tolist() == [scale, 2 * scale]
        assert np.asarray(read_image(path, background=(255,) * 3))[0, :, 0].tolist() == [255, 2 * scale]
        assert "hides_colors" in read_image(path).info
    pixels = np.array([0, 1, 2, 3, 256, 512, 768], ">u2").tobytes()[1:]
    path = keyed_png(tmp_path / "deep.png", (2, 1), 16, 2, pixels, np.array([1, 2, 3], ">u2").tobytes())
    assert np.asarray(read_image(path, background=(255,) * 3))[0].tolist() == [[255] * 3, [1, 2, 3]]


def keyed_png(path: Path, size: tuple[int, int], bits: int, color: int, row: bytes, clear: bytes) -> Path:
    """Write a PNG of one row, its filter byte first, with a clear value."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, bits, color, 0, 0, 0)) + chunk(b"tRNS", clear)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b""))
    return path
