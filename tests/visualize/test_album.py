from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from metaformer.errors import ConfigError
from metaformer.tasks.outputs import Prediction
from metaformer.tasks.segmentation.draw import annotate
from metaformer.tasks.segmentation.results import Segmentation
from metaformer.visualize.album import album_sink


def draw_prediction(prediction: Prediction[Segmentation], moving: bool) -> Image.Image:
    return annotate(prediction.pixels(), prediction.result, moving)


def test_images_are_drawn_with_their_legend(
    seen: Callable[..., Prediction[Segmentation]], tmp_path: Path
) -> None:
    with album_sink(tmp_path, draw_prediction) as add:
        add("x", seen("x.jpg"))
        add("y", seen("y.jpg", size=(400, 300)))
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == ["x.jpg", "y.jpg"]
    with Image.open(tmp_path / "images" / "y.jpg") as image:
        assert image.width == 400 and image.height > 320


def test_frames_of_each_video_are_joined(
    seen: Callable[..., Prediction[Segmentation]], tmp_path: Path
) -> None:
    with album_sink(tmp_path, draw_prediction) as add:
        for clip in ("a/c.gif", "b/c.gif"):
            for number in range(2):
                add(f"{clip[0]}_{number}", seen(clip, gray=9 * number, frame=number, milliseconds=40))
        add("alone", seen("alone.jpg"))
    folder = tmp_path / "images"
    assert {file.name for file in folder.glob("*.webp")} == {"c.webp", "c_2.webp"}
    with Image.open(folder / "c_2.webp") as image, Image.open(folder / "b_1.jpg") as frame:
        assert image.n_frames == 2 and image.size == frame.size  # type: ignore[attr-defined]


def test_a_folder_of_frames_becomes_an_animation(
    seen: Callable[..., Prediction[Segmentation]], tmp_path: Path
) -> None:
    with album_sink(tmp_path, draw_prediction, fps=20) as add:
        for number in range(3):
            add(str(number), seen(f"{number}.jpg", gray=9 * number))
    with Image.open(tmp_path / "images" / "animation.webp") as image:
        assert image.n_frames == 3  # type: ignore[attr-defined]
        image.load()
        assert image.info["duration"] == 50
    with pytest.raises(ConfigError, match="size"), album_sink(tmp_path, draw_prediction, fps=20) as add:
        add("0", seen("0.jpg"))
        add("1", seen("1.jpg", size=(400, 300)))
