from pathlib import Path

import pytest

from metaformer.errors import DataError
from metaformer.tasks.detection.formats.annotations import AnnotationBuilder, ImageFiles


def test_images_are_found_below_the_folder_only(tmp_path: Path) -> None:
    (tmp_path / "in/deep").mkdir(parents=True)
    for name in ("out.png", "in/a.png", "in/b.JPG", "in/notes.txt", "in/deep/c.png", "in/deep/d.png"):
        (tmp_path / name).touch()
    files = ImageFiles(tmp_path / "in")
    assert not files.trouble("a.png") and not files.trouble("deep/c.png") and not files.trouble("./a.png")
    for name in ("../out.png", "deep/../../out.png", str(tmp_path / "out.png"), "", "a.png\0", "deep"):
        assert files.trouble(name), name
    assert files.trouble("z.png") == f"no such image {tmp_path}/in/z.png"
    assert files.trouble("none/z.png") == f"no such image {tmp_path}/in/none/z.png"
    assert files.unused() == [
        f"{tmp_path}/in: 1 image(s) without annotations are not used",
        f"{tmp_path}/in/deep: 1 image(s) without annotations are not used",
    ]


def test_a_name_that_no_file_can_have_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot list it: File name too long"):
        ImageFiles(tmp_path).trouble("x" * 5000 + "/a.png")
    assert ImageFiles(tmp_path).trouble("x" * 5000 + ".png")


@pytest.mark.parametrize("numbers", [None, (4, 2)])
def test_classes_have_numbers(numbers: tuple[int, ...] | None) -> None:
    found = AnnotationBuilder(("ant", "bee"), numbers)
    assert (found.add("a.png", (3, 4)), found.add("b.png", (5, 6), 77)) == (0, 1)
    packed = found.packed()
    assert packed.category_ids == (numbers or (1, 2)) and packed.ids.tolist() == [1, 77]
    assert packed.sizes.tolist() == [[3, 4], [5, 6]] and len(packed.objects) == 0
