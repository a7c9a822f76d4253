from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer.errors import ConfigError
from metaformer.tasks.outputs import Prediction
from metaformer.tasks.segmentation.draw import annotate
from metaformer.tasks.segmentation.results import Segmentation
from metaformer.visualize.album import album_writer, write_animation


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
