from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer.errors import BadImage, ConfigError
from metaformer.tasks.segmentation.results import Segmentation
from metaformer.tasks.stream import ImageList, ImageStream, read_ahead


class Reds(ImageStream):
    """Says which pixels are red."""

    def see(self, image: Image.Image, path: str, name: str) -> Segmentation:
        red = (np.asarray(image)[..., 0] > 100).astype(np.uint8)
        return Segmentation(path, red, ("other", "red"), ((0, 0, 0), (255, 0, 0)))


def halves(width: int, height: int) -> Image.Image:
    """Red on the left."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[:, : width // 2, 0] = 200
    return Image.fromarray(pixels)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_images_come_in_order_and_clips_frame_by_frame(workers: int, tmp_path: Path) -> None:
    for name in ("a.jpg", "z.png"):
        halves(40, 30).save(tmp_path / name)
    halves(24, 16).save(
        tmp_path / "m.gif", save_all=True, append_images=[halves(24, 16).rotate(180)], duration=30
    )
    found = list(Reds(workers).stream(ImageList(tmp_path)))
    assert [(Path(one.result.path).name, one.frame, one.milliseconds) for one in found] == [
        ("a.jpg", None, 0), ("m.gif", 0, 30), ("m.gif", 1, 30), ("z.png", None, 0),
    ]  # fmt: skip
    assert [one.result.label_map[8, 2] for one in found] == [1, 1, 0, 1]


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    halves(9, 9).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    for workers in (0, 2):
        with pytest.raises(BadImage, match=r"b\.png"):
            list(Reds(workers).stream(ImageList(tmp_path)))


@pytest.mark.parametrize(("count", "workers"), [(0, 2), (1, 4), (7, 2), (7, 0)])
def test_reading_ahead_changes_nothing(count: int, workers: int) -> None:
    assert list(read_ahead(lambda index: index * index, count, workers)) == [i * i for i in range(count)]


def test_no_more_is_read_ahead_than_there_are_threads() -> None:
    read: list[int] = []
    stream = read_ahead(lambda index: read.append(index) or index, 50, 2)  # type: ignore[func-returns-value]
    assert next(stream) == 0
    stream.close()  # type: ignore[attr-defined]
    assert len(read) <= 3


def test_fewer_than_no_threads_are_refused() -> None:
    with pytest.raises(ConfigError, match="workers is -1: it must be 0 or more"):
        Reds(workers=-1)
