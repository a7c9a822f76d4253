from pathlib import Path

import pytest

from metaformer.data.class_lists import class_list
from metaformer.errors import DataError, UnknownName
from metaformer.tasks.segmentation.layouts import LAYOUTS, choose_layout, find_layout


def made(root: Path, *folders: str) -> Path:
    for folder in folders:
        place = root / folder
        if place.suffix:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text("x")
        else:
            place.mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    ("folders", "name", "home"),
    [
        (("images/training", "annotations/training"), "ade20k", ""),
        (("images/validation", "annotations/validation"), "ade20k", ""),
        (
            ("ADEChallengeData2016/images/training", "ADEChallengeData2016/annotations"),
            "ade20k",
            "ADEChallengeData2016",
        ),
        (("JPEGImages", "SegmentationClass"), "voc", ""),
        (("VOCdevkit/VOC2012/JPEGImages", "VOCdevkit/VOC2012/SegmentationClass"), "voc", "VOCdevkit/VOC2012"),
        (("leftImg8bit", "gtFine"), "cityscapes", ""),
        (("images/train2017", "stuffthingmaps/train2017"), "coco_stuff", ""),
        (("images/train", "masks/train"), "folders", ""),
        (("images/training", "annotations", "classes.txt"), "folders", ""),
        (("images/train2017", "classes.txt"), "folders", ""),
    ],
)
def test_layouts_are_recognized(tmp_path: Path, folders: tuple[str, ...], name: str, home: str) -> None:
    root = made(tmp_path, *folders)
    found = find_layout(root)
    assert found is not None
    assert (found[0].name, found[1]) == (name, root / home)
    assert choose_layout(root, "auto") == found
    assert choose_layout(root, name)[1] == root / home


def test_what_is_none_is_not_recognized(tmp_path: Path, pets: Path, demo: Path) -> None:
    for root in (pets, demo / "classify", demo / "detect", tmp_path / "nowhere"):
        assert find_layout(root) is None
    with pytest.raises(DataError, match=r"pets\d*: no layout .* it holds train, val; say segment\.layout"):
        choose_layout(pets, "auto")
    with pytest.raises(DataError, match="nowhere: no such folder"):
        choose_layout(tmp_path / "nowhere", "auto")
    with pytest.raises(UnknownName, match="did you mean ade20k"):
        choose_layout(pets, "ade20")


def test_numbers_are_as_many_as_classes() -> None:
    for layout in LAYOUTS.values():
        for numbers in layout.numbers:
            if numbers.classes is not None:
                assert layout.published is not None
                assert len(numbers.classes) == len(class_list(layout.published).names)
                assert not set(numbers.classes) & set(numbers.ignored)
    ids = LAYOUTS["cityscapes"].numbers[0]
    assert sorted({*(ids.classes or ()), *ids.ignored}) == list(range(34))
