import json
from pathlib import Path

import pytest
import torch

from metaformer.errors import DataError
from metaformer.tasks.classification.metrics import (
    ConfusionMatrix,
    RealAccuracy,
    TopKAccuracy,
    per_class,
    read_real_labels,
)


def test_top_k_accuracy_over_batches() -> None:
    scores = torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    labels = torch.tensor([1, 1, 2, 2])
    topk = TopKAccuracy((1, 2))
    for batch in (slice(0, 3), slice(3, 4)):
        topk.update(scores[batch], labels[batch])
    assert topk.result() == {1: 2 / 4, 2: 3 / 4}


def test_top_k_accuracy_of_few_classes_and_no_images() -> None:
    topk = TopKAccuracy((1, 5))
    assert topk.result() == {1: 0.0, 5: 0.0}
    topk.update(torch.rand(7, 3), torch.zeros(7, dtype=torch.int64))
    assert topk.result()[5] == 1.0


def test_confusion_matrix_has_true_classes_by_row() -> None:
    confusion = ConfusionMatrix(3)
    confusion.update(predicted=torch.tensor([0, 1, 1]), labels=torch.tensor([0, 0, 2]))
    confusion.update(predicted=torch.tensor([0]), labels=torch.tensor([0]))
    assert confusion.result().tolist() == [[2, 1, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("confusion", "expected"),
    [
        ([[3, 1], [2, 0]], [(4, 3, 5, 0.75, 0.6), (2, 0, 1, 0.0, 0.0)]),
        ([[0]], [(0, 0, 0, 0.0, 0.0)]),
    ],
)
def test_accuracy_and_precision_of_classes(confusion: list[list[int]], expected: list[tuple[float]]) -> None:
    rows = per_class(torch.tensor(confusion), ["ant", "bee"][: len(confusion)])
    assert [(r.images, r.correct, r.predicted, r.accuracy, r.precision) for r in rows] == expected
    assert rows[0].name == "ant"


@pytest.mark.parametrize(
    ("labels", "images", "expected"),
    [
        (
            [[3], [], [1, 2]],
            ["b/ILSVRC2012_val_00000003.JPEG", "a/ILSVRC2012_val_00000001.JPEG"],
            [{1, 2}, {3}],
        ),
        ([[0], [1]], ["x/b.png", "y/a.png"], [{1}, {0}]),  # in the order of file names
    ],
)
def test_real_labels(
    labels: list[list[int]], images: list[str], expected: list[set[int]], tmp_path: Path
) -> None:
    (tmp_path / "real.json").write_text(json.dumps(labels))
    assert read_real_labels(tmp_path / "real.json", images, 4) == expected


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        ([[0]], "labels of 1 images, the data set has 2"),
        ([[0], [9]], "class 9 does not exist"),
        ([[0], 3], "not a JSON list"),
        ({"a": 1}, "not a JSON list"),
        (None, "cannot be read"),
    ],
)
def test_invalid_real_labels_are_named(labels: object, error: str, tmp_path: Path) -> None:
    if labels is not None:
        (tmp_path / "real.json").write_text(json.dumps(labels))
    with pytest.raises(DataError, match=rf"real\.json: .*{error}"):
        read_real_labels(tmp_path / "real.json", ["a.png", "b.png"], 2)


def test_real_accuracy_is_of_images_with_accepted_classes() -> None:
    real = RealAccuracy([frozenset({0, 2}), frozenset(), frozenset({1})])
    real.update(torch.tensor([2, 0]), torch.tensor([0, 1]))
    real.update(torch.tensor([0]), torch.tensor([2]))
    assert real.result() == (0.5, 2)
