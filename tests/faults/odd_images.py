"""Image files as found in real data sets, each with its documented result."""

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

NOT_READ = "not a JPEG, PNG, WebP, BMP or GIF image"
BROKEN = "damaged or truncated"
TOO_LARGE = "pixels allowed"


@dataclass(frozen=True)
class OddImage:
    """An image file: the RGB pixels it decodes to, or why it is refused."""

    name: str
    content: bytes
    pixels: Pixels | None = None
    reason: str = ""
    """Part of the error's text."""
    within: int = 0
    """Tolerance of a lossy format."""
    warns: bool = False
    """Whether there is a warning that only the first frame is used."""
    bomb: bool = False
    """Refused by its header, at once and without using memory."""


def odd_images() -> list[OddImage]:
    """All image files, the same each time."""
    images = [*_formats(), *_modes(), *_turned(), *_moving(), *_odd_but_whole(), *_broken(), *_bombs()]
    assert len({image.name for image in images}) == len(images)
    return images


def _formats() -> Iterator[OddImage]:
    rgb, flat = _gradient(), _flat(200, 60, 20)
    yield OddImage("plain.png", _save(rgb, "PNG"), rgb)
    yield OddImage("plain.bmp", _save(rgb, "BMP"), rgb)
    yield OddImage("lossless.webp", _save(rgb, "WEBP", lossless=True), rgb)
    yield OddImage("lossy.webp", _save(flat, "WEBP", quality=100), flat, within=2)
    yield OddImage("plain.jpg", _save(flat, "JPEG", quality=100), flat, within=1)
    yield OddImage("progressive.jpg", _save(flat, "JPEG", quality=100, progressive=True), flat, within=1)
    yield OddImage("still.gif", _save(flat, "GIF"), flat)
    # the format is found by content
    yield OddImage("png-called.jpg", _save(rgb, "PNG"), rgb)
    yield OddImage("jpeg-called.png", _save(flat, "JPEG", quality=100), flat, within=1)
    yield OddImage("gif-without-extension", _save(flat, "GIF"), flat)


def _modes() -> Iterator[OddImage]:
    rgb = _gradient()
    gray = rgb[..., 0]
    as_gray = np.stack([gray] * 3, -1)
    alpha = np.full_like(gray, 70)
    alpha[:4] = 0
    bits = (gray > 99).astype(np.uint8)
    palette = Image.fromarray(rgb).quantize(16)
    colors = np.array(palette.getpalette(), np.uint8).reshape(-1, 3)[np.asarray(palette)]
    yield OddImage("gray.png", _save(gray, "PNG"), as_gray)
    yield OddImage("gray.jpg", _save(np.full_like(gray, 77), "JPEG"), np.full_like(rgb, 77), within=1)
    yield OddImage("one-bit.png", _save(Image.fromarray(bits * 255).convert("1"), "PNG"), _thrice(bits * 255))
    # transparency is dropped: the colors below it come out
    yield OddImage("gray-alpha.png", _save(np.stack([gray, alpha], -1), "PNG"), as_gray)
    yield OddImage("alpha.png", _save(np.concatenate([rgb, alpha[..., None]], -1), "PNG"), rgb)
    yield OddImage("palette.png", _save(palette, "PNG"), colors)
    yield OddImage("palette-one-clear.png", _save(palette, "PNG", transparency=3), colors)
    yield OddImage("palette-alpha.png", _save(palette, "PNG", transparency=bytes(range(16))), colors)
    yield OddImage("color-key.png", _save(rgb, "PNG", transparency=(0, 0, 90)), rgb)
    # 16 bits are scaled to 8, not clipped
    deep = np.linspace(0, 65535, 24 * 32).astype(np.uint16).reshape(24, 32)
    yield OddImage("sixteen-bit-gray.png", _save(deep, "PNG"), _thrice(np.rint(deep / 257)), within=1)
    wide = np.stack([deep, deep[::-1], deep[:, ::-1]], -1)
    yield OddImage("sixteen-bit-rgb.png", _deep_png(wide), np.rint(wide / 257).astype(np.uint8), within=1)
    ink = Image.new("CMYK", (32, 24), (55, 195, 235, 0))
    yield OddImage("cmyk.jpg", _save(ink, "JPEG", quality=100), _flat(200, 60, 20), within=1)
    key = Image.new("CMYK", (32, 24), (0, 0, 0, 155))
    yield OddImage("cmyk-black.jpg", _save(key, "JPEG", quality=100), _flat(100, 100, 100), within=1)


def _turned() -> Iterator[OddImage]:
    """An image stored in each of EXIF's eight ways comes out upright, always the same."""
    upright = _gradient(16, 48)
    stored = [
        upright,
        upright[:, ::-1],
        upright[::-1, ::-1],
        upright[::-1],
        upright.transpose(1, 0, 2),
        np.rot90(upright, 1),  # shown after a quarter turn clockwise
        np.rot90(upright, 2).transpose(1, 0, 2),
        np.rot90(upright, 3),
    ]
    for orientation, pixels in enumerate(stored, 1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        yield OddImage(f"exif-{orientation}.png", _save(pixels, "PNG", exif=exif), upright)


def _moving() -> Iterator[OddImage]:
    colors = [_flat(250, 0, 0), _flat(0, 250, 0), _flat(0, 0, 250)]
    frames = [Image.fromarray(color) for color in colors]
    for kind, name in (("GIF", "moving.gif"), ("WEBP", "moving.webp"), ("PNG", "moving.png")):
        options = {"lossless": True} if kind == "WEBP" else {}
        content = _save(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        yield OddImage(name, content, colors[0], warns=True)
    # several images of one moment, as telephones write them: the first is the image
    content = _save(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=100)
    yield OddImage("telephone.jpg", content, colors[0], within=1)


def _odd_but_whole() -> Iterator[OddImage]:
    rgb, flat = _gradient(), _flat(200, 60, 20)
    jpeg = _save(flat, "JPEG", quality=100)
    yield OddImage("one-pixel.png", _save(rgb[:1, :1], "PNG"), rgb[:1, :1])
    yield OddImage(
        "thin.png", _save(np.tile(rgb[:1, :1], (1, 5000, 1)), "PNG"), np.tile(rgb[:1, :1], (1, 5000, 1))
    )
    yield OddImage("words-after-the-end.jpg", jpeg + b"<?php ?>" * 99, flat, within=1)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x09junk"
    yield OddImage("damaged-exif.jpg", _save(flat, "JPEG", quality=100, exif=exif), flat, within=1)
    yield OddImage("damaged-color-profile.png", _save(rgb, "PNG", icc_profile=b"junk"), rgb)


def _broken() -> Iterator[OddImage]:
    rgb = _gradient(96, 128)
    whole = {kind: _save(rgb, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF")}
    for kind, content in whole.items():
        yield OddImage(f"cut.{kind.lower()}", content[: len(content) // 2], reason=BROKEN)
    yield OddImage("only-a-header.png", whole["PNG"][:20], reason=BROKEN)
    yield OddImage("only-a-signature.jpg", whole["JPEG"][:3], reason=NOT_READ)
    yield OddImage("bad-checksum.png", _flip(whole["PNG"], whole["PNG"].index(b"IDAT") + 8), reason=BROKEN)
    yield OddImage("no-pixels.png", _png(30, 30, b""), reason=BROKEN)
    yield OddImage("no-deflate.png", _png(30, 30, b"no deflate stream"), reason=BROKEN)
    yield OddImage("zeros-after-the-header.jpg", whole["JPEG"][:300] + bytes(2000), reason=BROKEN)
    yield OddImage("nothing.jpg", b"", reason="the file is empty")
    yield OddImage("zeros.jpg", bytes(4096), reason=NOT_READ)
    yield OddImage("words.jpg", b"This is no image.\n", reason=NOT_READ)
    yield OddImage(
        "not-found.jpg", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", reason=NOT_READ
    )
    yield OddImage("drawing.png", b'<svg xmlns="http://www.w3.org/2000/svg"/>', reason=NOT_READ)
    for kind in ("TIFF", "PPM", "ICO", "TGA", "JPEG2000"):  # whole, but of formats that stay closed
        yield OddImage(f"{kind.lower()}-called.png", _save(rgb, kind), reason=NOT_READ)
    text = zlib.compress(bytes(80 << 20), 9)
    chunk = _chunk(b"zTXt", b"words\0\0" + text)
    yield OddImage("text-that-swells.png", whole["PNG"][:33] + chunk + whole["PNG"][33:], reason=BROKEN)


def _bombs() -> Iterator[OddImage]:
    yield OddImage(
        "7100.png", _png(7100, 7100, b""), reason=f"7100x7100 is more than .* {TOO_LARGE}", bomb=True
    )
    yield OddImage("60000.png", _png(60000, 60000, b""), reason=TOO_LARGE, bomb=True)
    rows = zlib.compressobj(9)
    row = bytes(10001)  # of zeros, each with its filter
    packed = b"".join(rows.compress(row) for _ in range(10000)) + rows.flush()
    yield OddImage(
        "hundred-million-pixels.png", _png(10000, 10000, packed, kind=0), reason=TOO_LARGE, bomb=True
    )
    jpeg = _save(_gradient(), "JPEG")
    offset = jpeg.index(b"\xff\xc0") + 5
    swollen = jpeg[:offset] + struct.pack(">HH", 60000, 60000) + jpeg[offset + 4 :]
    yield OddImage("60000.jpg", swollen, reason=TOO_LARGE, bomb=True)
    gif = _save(_gradient(), "GIF")
    yield OddImage(
        "60000.gif", gif[:6] + struct.pack("<HH", 60000, 60000) + gif[10:], reason=TOO_LARGE, bomb=True
    )
    bmp = _save(_gradient(), "BMP")
    yield OddImage(
        "60000.bmp", bmp[:18] + struct.pack("<ii", 60000, 60000) + bmp[26:], reason=TOO_LARGE, bomb=True
    )
    webp = _save(Image.new("RGB", (16000, 8)), "WEBP", lossless=True)
    offset = webp.index(b"VP8L") + 9
    bits = int.from_bytes(webp[offset : offset + 4], "little") | (0x3FFF << 14)
    swollen = webp[:offset] + bits.to_bytes(4, "little") + webp[offset + 4 :]
    yield OddImage("16000.webp", swollen, reason=TOO_LARGE, bomb=True)


def _gradient(height: int = 24, width: int = 32) -> Pixels:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // (width - 1), y * 255 // (height - 1), 0 * x + 90], -1).astype(np.uint8)


def _flat(*color: int) -> Pixels:
    return np.full((24, 32, 3), color, np.uint8)


def _thrice(gray: NDArray[Any]) -> Pixels:
    return np.stack([gray.astype(np.uint8)] * 3, -1)


def _save(pixels: NDArray[Any] | Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, kind, **options)
    return stream.getvalue()


def _flip(content: bytes, offset: int) -> bytes:
    return content[:offset] + bytes([content[offset] ^ 0xFF]) + content[offset + 1 :]


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, pixels: bytes, depth: int = 8, kind: int = 2) -> bytes:
    """Give a PNG whose header claims what it likes."""
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _deep_png(pixels: NDArray[np.uint16]) -> bytes:
    """Write 16 bits a channel, which Pillow reads but does not write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    return _png(pixels.shape[1], pixels.shape[0], zlib.compress(rows), depth=16)
