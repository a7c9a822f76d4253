"""What readers of annotations share: rules of boxes, polygons and sizes, image files, ids."""

import math
from array import array
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaformer.errors import DataError
from metaformer.tasks.detection.formats.annotations import (
    MIN_SIDE,
    SLACK,
    AnnotationBuilder,
    BadAnnotation,
    Border,
    ImageFiles,
    check_size,
    is_number,
    polygon_area,
)
from metaformer.tasks.detection.instances import polygons_mask

ANY = st.floats(-20, 40) | st.floats()
SIZES = st.tuples(st.integers(1, 20), st.integers(1, 20))


@given(st.tuples(ANY, ANY, ANY, ANY), SIZES)
def test_boxes_that_pass_have_area_within_the_image(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> None:
    left, top, width, height = box
    try:
        Border(size).fit_box(box)
    except BadAnnotation as bad:
        assert bad.kind in ("box", "border") and bad.reason
        inside = min(left, top) >= 0 and left + width <= size[0] and top + height <= size[1]
        assert not (inside and width >= 2 * MIN_SIDE and height >= 2 * MIN_SIDE)
    else:
        assert min(left + width, size[0]) - max(left, 0) >= MIN_SIDE
        assert min(top + height, size[1]) - max(top, 0) >= MIN_SIDE
        assert min(left, top) >= -SLACK
        assert left + width <= size[0] + SLACK and top + height <= size[1] + SLACK


@given(st.lists(ANY, max_size=9), SIZES)
def test_polygons_that_pass_are_three_points_near_the_image(
    numbers: list[float], size: tuple[int, int]
) -> None:
    try:
        Border(size).fit_polygon(array("d", numbers))
    except BadAnnotation as bad:
        assert bad.kind in ("segmentation", "border") and bad.reason
    else:
        assert len(numbers) >= 6 and len(numbers) % 2 == 0
        assert all(-SLACK <= number <= side + SLACK for number, side in zip(numbers, size * 9, strict=False))


@given(st.tuples(ANY, ANY, ANY, ANY), SIZES)
def test_clipped_boxes_lie_in_the_image(
    box: tuple[float, float, float, float], size: tuple[int, int]
) -> None:
    border = Border(size, clip=True)
    try:
        left, top, width, height = border.fit_box(box)
    except BadAnnotation as bad:
        assert bad.kind == "box"
    else:
        assert width >= MIN_SIDE and height >= MIN_SIDE
        if border.clipped:
            assert min(left, top) >= 0 and left + width <= size[0] + 1e-9 and top + height <= size[1] + 1e-9
        else:
            assert (left, top, width, height) == box


@pytest.mark.parametrize(
    ("polygon", "area"),
    [
        ([-4, 2, 4, 2, 4, 6, -4, 6], 16),
        ([-4, 0, 4, 0, 4, 8], 24),
        ([-50, -50, 60, -50, 60, 60, -50, 60], 64),
        ([-6, 1, 6, 1, 6, 2, -2, 2, -2, 5, 6, 5, 6, 6, -6, 6], 12),  # two arms, joined outside
    ],
)
def test_polygons_are_cut_at_the_border(polygon: list[float], area: float) -> None:
    border = Border((8, 8), clip=True)
    inner = border.fit_polygon(array("d", polygon))
    assert border.clipped and min(inner) >= 0 and max(inner) <= 8
    assert polygon_area(inner) == pytest.approx(area)
    assert polygons_mask([np.array(inner).reshape(-1, 2)], (8, 8)).sum() == pytest.approx(area, abs=5)
    for beside in ([-9, -9, -3, -9, -3, -3], [12, 1, 20, 1, 20, 5], [1e308, -1e308, -1e308, 1e308, 9, 9]):
        with pytest.raises(BadAnnotation) as caught:
            border.fit_polygon(array("d", beside))
        assert caught.value.kind == "segmentation" and "clip" not in caught.value.reason


@pytest.mark.parametrize("size", [(0, 5), (5, -1), ("5", 5), (True, 5), (5, math.nan), (5, 5.5), (None, 5)])
def test_image_sizes_are_whole_numbers_above_zero(size: tuple[object, object]) -> None:
    with pytest.raises(BadAnnotation):
        check_size(*size)
    assert check_size(5.0, 7) == (5, 7)
    with pytest.raises(BadAnnotation, match="allowed"):
        check_size(10_000, 5_001)


def test_booleans_are_no_numbers() -> None:
    assert [is_number(value) for value in (1, 1.5, True, "1", None)] == [True, True, False, False, False]


@pytest.fixture
def image_files(tmp_path: Path) -> ImageFiles:
    (tmp_path / "set/in/deep").mkdir(parents=True)
    (tmp_path / "set/other").mkdir()
    for name in (
        "out.png",
        "set/o.png",
        "set/other/e.png",
        "set/in/a.png",
        "set/in/b.JPG",
        "set/in/notes.txt",
    ):
        (tmp_path / name).touch()
    for name in ("c.png", "d.png"):
        (tmp_path / "set/in/deep" / name).touch()
    return ImageFiles(tmp_path / "set/in", tmp_path / "set")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a.png", "a.png"),
        ("./a.png", "a.png"),
        ("deep/c.png", "deep/c.png"),
        ("deep\\c.png", "deep/c.png"),
        (".\\deep\\c.png", "deep/c.png"),
        ("in/a.png", "a.png"),
        ("in\\deep\\c.png", "deep/c.png"),
        ("other/e.png", "../other/e.png"),
        ("{root}/in/deep/c.png", "deep/c.png"),
        ("/in/a.png", "a.png"),
        ("\\in\\deep\\c.png", "deep/c.png"),
        ("C:\\Users\\me\\set\\in\\deep\\c.png", "deep/c.png"),
        ("C:/in/a.png", "a.png"),
        ("/home/me/set/in/a.png", "a.png"),
    ],
)
def test_images_are_found_by_names_that_lead_into_the_data_set(
    name: str, found: str, image_files: ImageFiles
) -> None:
    assert image_files.find(name.replace("{root}", str(image_files.root))) == found


def test_nothing_outside_the_data_set_exists(image_files: ImageFiles, tmp_path: Path) -> None:
    outside = ("../out.png", "deep/../../out.png", "..\\..\\out.png", "", "a.png\0", "/../out.png")
    for name in (*outside, str(tmp_path / "out.png"), "deep", "/etc/passwd", "C:\\out.png", "/"):
        with pytest.raises(BadAnnotation, match=r"does not lie in|no such image"):
            image_files.find(name)
    for name in ("z.png", "none/z.png"):
        with pytest.raises(BadAnnotation, match=f"no such image {tmp_path}/set/in/{name}"):
            image_files.find(name)


def test_images_that_were_not_asked_for(image_files: ImageFiles, tmp_path: Path) -> None:
    image_files.find("a.png")
    image_files.find("deep/c.png")
    assert image_files.unused() == [
        f"{tmp_path}/set/in: 1 image(s) without annotations are not used",
        f"{tmp_path}/set/in/deep: 1 image(s) without annotations are not used",
    ]


def test_file_names_that_are_too_long(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot list it: File name too long"):
        ImageFiles(tmp_path).find("x" * 5000 + "/a.png")
    with pytest.raises(BadAnnotation):
        ImageFiles(tmp_path).find("x" * 5000 + ".png")


@pytest.mark.parametrize("numbers", [None, (4, 2)])
def test_categories_have_ids(numbers: tuple[int, ...] | None) -> None:
    builder = AnnotationBuilder(("ant", "bee"), numbers)
    assert (builder.add_image("a.png", (3, 4)), builder.add_image("b.png", (5, 6), 77)) == (0, 1)
    annotations = builder.build()
    assert annotations.category_ids == (numbers or (1, 2)) and annotations.ids.tolist() == [1, 77]
    assert annotations.sizes.tolist() == [[3, 4], [5, 6]] and len(annotations.objects) == 0
