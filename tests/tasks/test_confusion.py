import torch

from metaformer.tasks.confusion import Confusion, per_class


def test_rows_are_truth_and_columns_predictions() -> None:
    confusion = Confusion(3)
    confusion.update(predicted=torch.tensor([0, 1, 1]), labels=torch.tensor([0, 0, 2]))
    confusion.update(predicted=torch.tensor([0]), labels=torch.tensor([0]))
    assert confusion.result().tolist() == [[2, 1, 0], [0, 0, 0], [0, 1, 0]]


def test_table_gives_recall_and_precision() -> None:
    rows = per_class(torch.tensor([[3, 1], [2, 0]]), ["ant", "bee"])
    assert [(r.name, r.images, r.correct, r.predicted) for r in rows] == [("ant", 4, 3, 5), ("bee", 2, 0, 1)]
    assert (rows[0].accuracy, rows[0].precision) == (0.75, 0.6)
    assert (rows[1].accuracy, rows[1].precision) == (0.0, 0.0)


def test_a_class_without_images_scores_zero() -> None:
    row = per_class(torch.zeros(1, 1, dtype=torch.int64), ["none"])[0]
    assert (row.accuracy, row.precision) == (0.0, 0.0)
