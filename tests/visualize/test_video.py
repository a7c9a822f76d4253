import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer.errors import BadImage, DataError, MissingPackage
from metaformer.visualize.video import frames, is_animated


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
