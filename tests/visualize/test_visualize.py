"""Canvases, albums and videos."""

import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from metaformer.errors import BadImage, ConfigError, DataError, MissingPackage
from metaformer.tasks.outputs import Prediction
from metaformer.tasks.segmentation.draw import annotate
from metaformer.tasks.segmentation.results import Segmentation
from metaformer.visualize.album import album_writer, write_animation
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
from metaformer.visualize.video import frames, is_animated


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


def test_the_panel_of_a_strip_is_no_poster() -> None:
    canvas = draw_bars(Image.new("RGB", (30_000, 1)), [Bar("cat", 0.5)] * 10)
    assert canvas.width == 30_000 and canvas.height < 4096


def test_bars_have_their_share_of_the_width_and_a_mark() -> None:
    canvas = draw_bars(Image.new("L", (100, 50), 9), [Bar("", 0.5, STRONG), Bar("", 0.0, mark=0.25)])
    assert canvas.width == 400 and canvas.height > 200
    below = canvas.crop((0, 200, 400, canvas.height))
    row = [below.getpixel((x, below.height // 4)) for x in range(400)]
    assert row.count(STRONG) == pytest.approx(200, abs=12)
    assert below.getpixel((8 + round(0.25 * 384), below.height * 3 // 4)) == INK


def draw_prediction(prediction: Prediction[Segmentation], moving: bool) -> Image.Image:
    return annotate(prediction.pixels(), prediction.result, moving)


def test_images_are_drawn_with_their_legend(
    segmented: Callable[..., Prediction[Segmentation]], tmp_path: Path
) -> None:
    with album_writer(tmp_path, draw_prediction) as add:
        add("x", segmented("x.jpg"))
        add("y", segmented("y.jpg", size=(400, 300)))
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == ["x.jpg", "y.jpg"]
    with Image.open(tmp_path / "images" / "y.jpg") as image:
        assert image.width == 400 and image.height > 320


def test_frames_of_each_video_are_joined(
    segmented: Callable[..., Prediction[Segmentation]], tmp_path: Path
) -> None:
    with album_writer(tmp_path, draw_prediction) as add:
        for clip in ("a/c.gif", "b/c.gif"):
            for number in range(2):
                add(f"{clip[0]}_{number}", segmented(clip, gray=9 * number, frame=number, milliseconds=40))
        add("alone", segmented("alone.jpg"))
    folder = tmp_path / "images"
    assert {file.name for file in folder.glob("*.webp")} == {"c.webp", "c_2.webp"}
    with Image.open(folder / "c_2.webp") as image, Image.open(folder / "b_1.jpg") as frame:
        assert image.n_frames == 2 and image.size == frame.size  # type: ignore[attr-defined]


def test_a_folder_of_frames_becomes_an_animation(
    segmented: Callable[..., Prediction[Segmentation]], tmp_path: Path
) -> None:
    with album_writer(tmp_path, draw_prediction, fps=20) as add:
        for number in range(3):
            add(str(number), segmented(f"{number}.jpg", gray=9 * number))
    with Image.open(tmp_path / "images" / "animation.webp") as image:
        assert image.n_frames == 3  # type: ignore[attr-defined]
        image.load()
        assert image.info["duration"] == 50
    with pytest.raises(ConfigError, match="size"), album_writer(tmp_path, draw_prediction, fps=20) as add:
        add("0", segmented("0.jpg"))
        add("1", segmented("1.jpg", size=(400, 300)))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"{i}.jpg" for i in range(3)]
    for i, file in enumerate(made):
        Image.new("RGB", (33, 20), (80 * i, 60, 20)).save(file, quality=95)
    return made


def test_each_frame_has_its_duration(files: list[Path], tmp_path: Path) -> None:
    path = write_animation(files, [40, 100, 500], tmp_path / "new" / "a.webp")
    with Image.open(path) as image:
        assert image.n_frames == 3 and image.size == (33, 20)  # type: ignore[attr-defined]
        for i, milliseconds in enumerate([40, 100, 500]):
            image.seek(i)
            image.load()
            assert image.info["duration"] == milliseconds
            assert abs(np.asarray(image.convert("RGB")).mean(axis=(0, 1))[0] - 80 * i) < 8


def test_an_animation_of_one_image(files: list[Path], tmp_path: Path) -> None:
    with Image.open(write_animation(files[:1], [40], tmp_path / "a.webp")) as image:
        assert image.size == (33, 20)


def test_frames_of_two_sizes_are_named(files: list[Path], tmp_path: Path) -> None:
    Image.new("RGB", (20, 33)).save(files[1])
    with pytest.raises(ConfigError, match=r"0\.jpg is 33×20, 1\.jpg 20×33"):
        write_animation(files, [40] * 3, tmp_path / "a.webp")
    assert not list(tmp_path.glob("*a.webp"))


def test_mp4_through_pyav(files: list[Path], tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = write_animation(files, [40] * 3, tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 25
    assert len(frames) == 3 and frames[0].size == (32, 20)


@pytest.fixture
def images() -> list[Image.Image]:
    return [Image.new("RGB", (16, 10), (70 * i, 40, 200)) for i in range(3)]


@pytest.mark.parametrize("ending", ["gif", "webp", "png"])
def test_an_animation_has_frames_and_durations(
    ending: str, images: list[Image.Image], tmp_path: Path
) -> None:
    path = tmp_path / f"a.{ending}"
    images[0].save(path, save_all=True, append_images=images[1:], duration=[50, 200, 70])
    assert is_animated(path)
    found = list(frames(path))
    assert [frame.milliseconds for frame in found] == [50, 200, 70]
    for i, frame in enumerate(found):
        assert frame.image.mode == "RGB" and frame.image.size == (16, 10)
        assert abs(np.asarray(frame.image)[..., 0].mean() - 70 * i) < 8


def test_a_still_image_is_not_animated(images: list[Image.Image], tmp_path: Path) -> None:
    for name in ("a.gif", "a.png", "a.jpg"):
        images[0].save(tmp_path / name)
        assert not is_animated(tmp_path / name)
    (tmp_path / "b.gif").write_bytes(b"no image")
    assert not is_animated(tmp_path / "b.gif") and is_animated("anything.MP4")


def test_transparent_pixels_of_an_animation_are_blended(tmp_path: Path) -> None:
    clear = [Image.new("RGBA", (8, 8), (0, 0, 0, 0)), Image.new("RGBA", (8, 8), (0, 0, 0, 255))]
    clear[0].save(tmp_path / "a.png", save_all=True, append_images=clear[1:])
    found = [frame.image.getpixel((0, 0)) for frame in frames(tmp_path / "a.png", (1, 2, 3))]
    assert found == [(1, 2, 3), (0, 0, 0)]


def test_a_damaged_animation_is_named_with_the_frame(images: list[Image.Image], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    noise = [
        Image.fromarray(np.random.RandomState(i).randint(0, 255, (40, 40, 3), np.uint8)) for i in range(3)
    ]
    noise[0].save(path, save_all=True, append_images=noise[1:], duration=50)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(BadImage, match=r"a\.png: cannot be read beyond frame [12]"):
        list(frames(path))


def test_a_frame_can_be_too_large(
    images: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:])
    monkeypatch.setattr("metaformer.visualize.video.MAX_PIXELS", 100)
    with pytest.raises(BadImage, match="more than the 100 pixels"):
        next(frames(tmp_path / "a.gif"))


def test_a_video_needs_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackage, match=r"a\.mp4: reading videos needs PyAV.*metaformer\[video\]"):
        next(frames(tmp_path / "a.mp4"))


def test_a_video_gives_its_frames(images: list[Image.Image], tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 16, 10, "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    found = list(frames(tmp_path / "a.mp4"))
    assert [frame.milliseconds for frame in found] == [50] * 3
    assert [frame.image.size for frame in found] == [(16, 10)] * 3
    (tmp_path / "b.mp4").write_bytes(b"no video")
    with pytest.raises(BadImage, match=r"b\.mp4: cannot be read beyond frame 0"):
        list(frames(tmp_path / "b.mp4"))
    with pytest.raises(DataError, match="no such file"):
        list(frames(tmp_path / "c.mp4"))


ONE = 1 << 16
MATRICES = {
    "identity": ((ONE, 0, 0, ONE), None),
    "a quarter clockwise": ((0, ONE, -ONE, 0), Image.Transpose.ROTATE_270),
    "a half": ((-ONE, 0, 0, -ONE), Image.Transpose.ROTATE_180),
    "a quarter counterclockwise": ((0, -ONE, ONE, 0), Image.Transpose.ROTATE_90),
    "mirrored": ((-ONE, 0, 0, ONE), Image.Transpose.FLIP_LEFT_RIGHT),
    "upside down": ((ONE, 0, 0, -ONE), Image.Transpose.FLIP_TOP_BOTTOM),
    "mirrored and a quarter": ((0, ONE, ONE, 0), Image.Transpose.TRANSPOSE),
}


@pytest.mark.parametrize("name", MATRICES)
def test_frames_of_a_video_are_upright(name: str, tmp_path: Path) -> None:
    """As telephones write them: frames lie, and the track's header says how they are shown."""
    av = pytest.importorskip("av")
    (a, b, c, d), turn = MATRICES[name]
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:16, :32] = 250
    plain, turned = tmp_path / "plain.mp4", tmp_path / "turned.mp4"
    with av.open(str(plain), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for packet in (*stream.encode(av.VideoFrame.from_ndarray(pixels)), *stream.encode()):
            container.mux(packet)
    content = plain.read_bytes()
    matrix = content.index(b"tkhd") + 44
    entries = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    turned.write_bytes(content[:matrix] + entries + content[matrix + 36 :])
    (before,), (after,) = frames(plain), frames(turned)
    expected = before.image if turn is None else before.image.transpose(turn)
    assert after.image.size == expected.size and after.image.tobytes() == expected.tobytes()


def test_frames_of_animations_are_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    red = np.zeros((4, 6, 3), np.uint8)
    red[:2, :3, 0] = 250
    images = [Image.fromarray(red), Image.fromarray(red[:, ::-1])]
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], exif=exif, lossless=True)
    found = [np.asarray(frame.image) for frame in frames(tmp_path / "a.webp")]
    assert [np.array_equal(a, np.rot90(b, -1)) for a, b in zip(found, images, strict=True)] == [True, True]
