from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer.errors import ConfigError
from metaformer.visualize.animation import write_animation


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"{i}.jpg" for i in range(3)]
    for i, file in enumerate(made):
        Image.new("RGB", (33, 20), (80 * i, 60, 20)).save(file, quality=95)
    return made


def test_images_follow_each_other_for_as_long_as_asked(files: list[Path], tmp_path: Path) -> None:
    path = write_animation(files, [40, 100, 500], tmp_path / "new" / "a.webp")
    with Image.open(path) as image:
        assert image.n_frames == 3 and image.size == (33, 20)  # type: ignore[attr-defined]
        for i, milliseconds in enumerate([40, 100, 500]):
            image.seek(i)
            image.load()
            assert image.info["duration"] == milliseconds
            assert abs(np.asarray(image.convert("RGB")).mean(axis=(0, 1))[0] - 80 * i) < 8


def test_one_image_is_an_animation_too(files: list[Path], tmp_path: Path) -> None:
    with Image.open(write_animation(files[:1], [40], tmp_path / "a.webp")) as image:
        assert image.size == (33, 20)


def test_images_of_two_sizes_are_told(files: list[Path], tmp_path: Path) -> None:
    Image.new("RGB", (20, 33)).save(files[1])
    with pytest.raises(ConfigError, match=r"0\.jpg is 33×20 and 1\.jpg 20×33"):
        write_animation(files, [40] * 3, tmp_path / "a.webp")
    assert not list(tmp_path.glob("*a.webp"))


def test_mp4_through_pyav(files: list[Path], tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = write_animation(files, [40] * 3, tmp_path / "a.mp4")
    with av.open(str(path)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 25
    assert len(frames) == 3 and frames[0].size == (32, 20)
