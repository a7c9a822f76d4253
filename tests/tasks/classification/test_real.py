import json
from pathlib import Path

import pytest
import torch

from metaformer.errors import DataError
from metaformer.tasks.classification.metrics import RealAccuracy, read_real_labels


def written(folder: Path, labels: object) -> Path:
    file = folder / "real.json"
    file.write_text(json.dumps(labels))
    return file


def test_imagenet_names_give_the_places(tmp_path: Path) -> None:
    file = written(tmp_path, [[3], [], [1, 2]])
    images = ["b/ILSVRC2012_val_00000003.JPEG", "a/ILSVRC2012_val_00000001.JPEG"]
    assert read_real_labels(file, images, 4) == [{1, 2}, {3}]


def test_other_files_are_taken_in_the_order_of_their_names(tmp_path: Path) -> None:
    file = written(tmp_path, [[0], [1]])
    assert read_real_labels(file, ["x/b.png", "y/a.png"], 2) == [{1}, {0}]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([[0]], "labels of 1 images, the data set has 2"),
        ([[0], [9]], "class 9 does not exist"),
        ([[0], 3], "not a JSON list"),
        ({"a": 1}, "not a JSON list"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, labels: object, told: str) -> None:
    with pytest.raises(DataError, match=told):
        read_real_labels(written(tmp_path, labels), ["a.png", "b.png"], 2)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no\.json"):
        read_real_labels(tmp_path / "no.json", ["a.png"], 2)


def test_any_accepted_class_counts_and_images_without_one_do_not() -> None:
    real = RealAccuracy([frozenset({0, 2}), frozenset(), frozenset({1})])
    real.update(torch.tensor([2, 0]), torch.tensor([0, 1]))
    real.update(torch.tensor([0]), torch.tensor([2]))
    assert real.result() == (0.5, 2)
