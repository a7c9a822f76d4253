import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer.data.folder import ImageFolder
from metaformer.errors import BadImage, ConfigError, DataError
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.segmentation.results import Segmentation
from metaformer.tasks.stream import ImageList, StreamPredictor, read_ahead


@pytest.fixture
def album(tmp_path: Path) -> Path:
    for name in ("b/2.png", "b/deep/1.JPG", "a/3.png", "a/.hidden.png", "a/notes.txt"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".txt":
            file.write_text("x")
        else:
            Image.new("L", (4, 4), 7).save(file, "PNG")
    return tmp_path


def test_a_folder_gives_all_images_below_it_sorted(album: Path) -> None:
    images = ImageList(album)
    assert [images.path(i) for i in range(len(images))] == [
        str(album / name) for name in ("a/3.png", "b/2.png", "b/deep/1.JPG")
    ]
    assert images.image(0).mode == "RGB" and list(images.labels) == [0, 0, 0]


def test_globs_files_and_images_in_memory_keep_their_order(album: Path) -> None:
    images = ImageList([str(album / "**" / "*.JPG"), album / "a" / "3.png", Image.new("L", (2, 2))])
    assert [Path(images.path(i)).name for i in range(3)] == ["1.JPG", "3.png", ""]
    assert images.image(2).mode == "RGB"


@pytest.mark.parametrize(("source", "named"), [("zzz", "zzz"), ("*.gif", r"\*\.gif"), ([], "no images")])
def test_sources_without_images_are_named(album: Path, source: str | list[str], named: str) -> None:
    with pytest.raises(DataError, match=named):
        ImageList(str(album / source) if isinstance(source, str) else source)  # type: ignore[arg-type]


def test_file_names_must_be_utf_8(tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.png"))
    Image.new("RGB", (2, 2)).save(file)
    with pytest.raises(DataError, match="UTF-8"):
        ImageList(file)


class Reds(StreamPredictor[Segmentation]):
    """Mask of red pixels."""

    model: LoadedModel

    def predict_image(self, image: Image.Image, path: str, name: str) -> Segmentation:
        red = (np.asarray(image)[..., 0] > 100).astype(np.uint8)
        return Segmentation(path, red, ("other", "red"), ((0, 0, 0), (255, 0, 0)))


def half_red(width: int, height: int) -> Image.Image:
    """Red on the left."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 200
    return Image.fromarray(pixels)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_images_are_predicted_in_order_and_videos_frame_by_frame(workers: int, tmp_path: Path) -> None:
    for name in ("a.jpg", "z.png"):
        half_red(40, 30).save(tmp_path / name)
    rotated = half_red(24, 16).rotate(180)
    half_red(24, 16).save(tmp_path / "m.gif", save_all=True, append_images=[rotated], duration=30)
    predictions = list(Reds(workers).predict(ImageList(tmp_path)))
    assert [(Path(one.path).name, one.frame, one.milliseconds) for one in predictions] == [
        ("a.jpg", None, 0), ("m.gif", 0, 30), ("m.gif", 1, 30), ("z.png", None, 0),
    ]  # fmt: skip
    assert [one.result.label_map[8, 2] for one in predictions] == [1, 1, 0, 1]
    assert [one.pixels().size for one in predictions] == [(40, 30), (24, 16), (24, 16), (40, 30)]


def test_prediction_and_training_find_the_same_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inside = ("ant/a.png", "ant/deep/b.png", "bee/c.png", "ant/.ipynb_checkpoints/a.png", "ant/.d.png")
    for name in (*(f"data/train/{name}" for name in inside), "elsewhere/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        half_red(9, 9).save(tmp_path / name)
    train = tmp_path / "data" / "train"
    (train / "bee" / "linked").symlink_to(tmp_path / "elsewhere")
    (train / "wasp").symlink_to(tmp_path / "elsewhere")
    expected = [train / name for name in (
        "ant/a.png", "ant/deep/b.png", "bee/c.png", "bee/linked/e.png", "wasp/e.png"
    )]  # fmt: skip
    images = ImageList(train)
    assert [Path(images.path(i)) for i in range(len(images))] == expected
    (line,) = [record.getMessage() for record in caplog.records]
    assert ".ipynb_checkpoints" in line and ".d.png" in line
    caplog.clear()
    assert ImageFolder(tmp_path / "data", "train").paths == expected
    (line,) = [record.getMessage() for record in caplog.records]
    assert ".ipynb_checkpoints" in line and ".d.png" in line
    caplog.clear()
    (train / "ant" / "circle").symlink_to(train)
    images = ImageList(train)
    assert [Path(images.path(i)) for i in range(len(images))] == expected
    assert any("circle" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named(workers: int, tmp_path: Path) -> None:
    half_red(9, 9).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(BadImage, match=r"b\.png"):
        list(Reds(workers).predict(ImageList(tmp_path)))


@pytest.mark.parametrize(("count", "workers"), [(0, 2), (1, 4), (7, 2), (7, 0)])
def test_reading_ahead_keeps_the_order(count: int, workers: int) -> None:
    assert list(read_ahead(lambda index: index * index, count, workers)) == [i * i for i in range(count)]


def test_no_more_is_read_ahead_than_there_are_threads() -> None:
    read: list[int] = []
    stream = read_ahead(lambda index: read.append(index) or index, 50, 2)  # type: ignore[func-returns-value]
    assert next(stream) == 0
    stream.close()  # type: ignore[attr-defined]
    assert len(read) <= 3


def test_workers_are_not_negative() -> None:
    with pytest.raises(ConfigError, match=r"workers\b.*-1"):
        Reds(workers=-1)


def test_a_file_an_image_and_an_array_are_one_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, deep = tmp_path / "turned.png", tmp_path / "deep.png"
    red = np.zeros((4, 6, 3), np.uint8)
    red[:2, :3, 0] = 250
    Image.fromarray(red).save(turned, exif=exif)
    Image.fromarray(np.linspace(0, 65535, 24).astype(np.uint16).reshape(4, 6)).save(deep)
    for path in (turned, deep):
        upright = np.asarray(ImageList(path).image(0))
        images = [path, Image.open(path), upright]
        first, *others = [found.result.label_map for found in Reds().predict(ImageList(images))]
        assert first.any() and not first.all()
        assert all(np.array_equal(first, other) for other in others)
        assert len(ImageList(upright)) == 1, "an array is one image, not a list of rows"


@pytest.mark.parametrize("image", [None, 3, b"x", [None], [["a"]], (1, 2), object()])
def test_what_is_no_image_is_refused(image: object) -> None:
    with pytest.raises(DataError, match="is no image: give a path, an image of Pillow or an array"):
        ImageList(image)  # type: ignore[arg-type]
