import os
from pathlib import Path

import pytest
from PIL import Image

from metaformer.errors import DataError
from metaformer.tasks.stream import ImageList


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


def test_a_glob_a_file_and_an_image_in_memory_in_the_order_given(album: Path) -> None:
    images = ImageList([str(album / "**" / "*.JPG"), album / "a" / "3.png", Image.new("L", (2, 2))])
    assert [Path(images.path(i)).name for i in range(3)] == ["1.JPG", "3.png", ""]
    assert images.image(2).mode == "RGB"


@pytest.mark.parametrize(
    ("place", "told"),
    [("zzz", "no such file"), ("*.gif", "no images in this pattern"), ([], "no images were")],
)
def test_nothing_found_is_told(album: Path, place: str | list[str], told: str) -> None:
    with pytest.raises(DataError, match=told):
        ImageList(str(album / place) if isinstance(place, str) else place)  # type: ignore[arg-type]


def test_a_name_that_no_result_can_hold_is_refused(tmp_path: Path) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.png"))
    Image.new("RGB", (2, 2)).save(file)
    with pytest.raises(DataError, match="the name is not UTF-8: rename it"):
        ImageList(file)
