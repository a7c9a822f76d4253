"""Made images, and links to somebody's."""

from pathlib import Path

import pytest
from PIL import Image

from benchmarks.loading.images import SIZE, lay_out
from metaformer.data.folder import ImageFolder
from metaformer.errors import DataError


def test_made_images_have_imagenets_size(images: Path) -> None:
    found = ImageFolder(images, "train")
    assert len(found) == 8 and len(found.classes) == 4
    assert {found.image(i).size for i in range(8)} == {SIZE}
    assert all(20_000 < path.stat().st_size < 200_000 for path in found.paths)
    assert len({path.read_bytes() for path in found.paths}) == 8


def test_links_to_images_at_any_depth(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    (root / "a/b").mkdir(parents=True)
    for number in range(9):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(root / ("a/b" if number % 2 else "a") / f"{number}.png")
    (root / "notes.txt").write_text("no image")
    (tmp_path / "linked").mkdir()
    assert lay_out(tmp_path / "linked", 5, root) == 5
    found = ImageFolder(tmp_path / "linked", "train")
    assert len({found.image(i).tobytes() for i in range(len(found))}) == 5
    (tmp_path / "all").mkdir()
    assert lay_out(tmp_path / "all", 100, root) == 9


def test_too_few_images(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "linked").mkdir()
    with pytest.raises(DataError, match="0 images in it and below: at least 4"):
        lay_out(tmp_path / "linked", 5, tmp_path / "empty")
