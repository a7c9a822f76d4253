import json
from collections.abc import Callable
from pathlib import Path

import pytest

from metaformer.tasks.outputs import Prediction
from metaformer.tasks.segmentation.write_coco import coco_file


def test_images_keep_cocos_numbers_and_others_get_free_ones(
    seen: Callable[..., Prediction], tmp_path: Path
) -> None:
    names = ["x", "000000000002", "y", "2", "0"]
    with coco_file(tmp_path / "f.json") as file:
        numbers = [file.add_image(name, seen(f"{name}.jpg")) for name in names]
        file.add({"image_id": number} for number in numbers[:2])
        file.add([{"image_id": numbers[2]}])
    assert numbers == [1, 2, 3, 4, 5]
    found = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert [one["image_id"] for one in found["annotations"]] == [1, 2, 3]
    assert found["images"][1] == {
        "id": 2, "file_name": seen("000000000002.jpg").result.path, "width": 12, "height": 8,
    }  # fmt: skip
    assert found["categories"][1] == {
        "id": 2, "name": "é, b", "supercategory": "", "isthing": 0, "color": [200, 40, 40],
    }  # fmt: skip


def test_frames_are_told_and_an_error_leaves_no_file(seen: Callable[..., Prediction], tmp_path: Path) -> None:
    with pytest.raises(KeyError), coco_file(tmp_path / "f.json") as file:
        file.add_image("x", seen(frame=3))
        raise KeyError
    assert not list(tmp_path.glob("*f.json"))
    with coco_file(tmp_path / "f.json") as file:
        file.add_image("x", seen(frame=3))
    found = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert found["images"][0]["frame"] == 3 and found["annotations"] == []
