import pytest

from metaformer.data.class_lists import category_ids, class_list, palette, palette_for
from metaformer.errors import UnknownName


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("ade20k", 150, ("wall", (120, 120, 120)), ("flag", (92, 0, 255))),
        ("voc", 21, ("background", (0, 0, 0)), ("tvmonitor", (0, 64, 128))),
        ("cityscapes", 19, ("road", (128, 64, 128)), ("bicycle", (119, 11, 32))),
        ("coco", 80, ("person", (220, 20, 60)), ("toothbrush", (191, 162, 208))),
        ("coco_stuff", 171, ("person", (0, 192, 64)), ("wood", (64, 64, 0))),
    ],
)
def test_published_lists(
    name: str, count: int, first: tuple[str, tuple[int, ...]], last: tuple[str, tuple[int, ...]]
) -> None:
    published = class_list(name)
    assert len(published.names) == len(set(published.names)) == len(published.palette) == count
    rows = list(zip(published.names, published.palette, strict=True))
    assert (rows[0], rows[-1]) == (first, last)
    assert all(name == name.strip() for name in published.names)
    assert all(0 <= channel <= 255 for color in published.palette for channel in color)
    assert palette_for(published.names) == published.palette


def test_classes_have_cocos_numbers_where_they_are_its_80() -> None:
    names = class_list("coco").names
    numbers = dict(zip(names, category_ids(names), strict=True))
    assert [numbers[name] for name in ("person", "stop sign", "umbrella", "tv", "toothbrush")] == [
        1,
        13,
        28,
        72,
        90,
    ]
    assert set(names) - set(class_list("coco_stuff").names) == set()
    assert category_ids(["cat", "person"]) == (1, 2)


def test_an_unknown_list_names_the_known() -> None:
    with pytest.raises(UnknownName, match="ade20k"):
        class_list("ade")


def test_colors_for_any_classes_are_vocs_all_different_and_black_the_background() -> None:
    assert palette(21) == class_list("voc").palette
    assert palette_for(("background", "dog")) == ((0, 0, 0), (128, 0, 0))
    assert palette_for(("cat", "dog")) == ((128, 0, 0), (0, 128, 0))
    assert len(set(palette(5000))) == 5000
