from typing import Any

from metaformer.config import TrainConfig
from metaformer.report.blocks import Examples, Table
from metaformer.tasks.classification.report import build_report


def state(classes: int, examples: list[dict[str, Any]]) -> dict[str, Any]:
    rows = [
        {"name": f"class {i}", "images": 4, "correct": i % 5, "predicted": 4, "accuracy": i % 5 / 4,
         "precision": 0.5}
        for i in range(classes)
    ]  # fmt: skip
    card = {
        "name": "net",
        "classes": [row["name"] for row in rows],
        "preprocess": {"image_size": 64, "crop": 0.9, "interpolation": "bicubic"},
    }
    confusion = [[3 if i == j else int(j == i + 1) for j in range(classes)] for i in range(classes)]
    evaluation = {"images": 4 * classes, "per_class": rows, "confusion": confusion, "examples": examples}
    metrics = {"top1": 0.5, "loss": 1.25}
    return {"card": card, "evaluation": evaluation, "metrics": metrics, "metric": "top1", "epoch": 7}


def test_examples_are_errors_and_correct_predictions_of_every_class(pets: Any) -> None:
    examples = [
        {"path": f"{pets}/val/{label}/{i}.png", "label": label, "predicted": predicted, "score": 0.75}
        for label, predicted, i in [
            ("ant", "bee", 0), ("ant", "ant", 1), ("ant", "ant", 2), ("bee", "bee", 1), ("cat", "bee", 99),
        ]
    ]  # fmt: skip
    images, classes, confusion = build_report(state(5, examples), TrainConfig()).sections
    wrong, right = images.blocks
    assert isinstance(wrong, Examples) and isinstance(right, Examples)
    assert [(one.value, one.note, one.correct) for one in wrong.examples] == [("bee", "is ant", False)]
    assert [(one.value, one.text, one.note) for one in right.examples] == [
        ("ant", "75%", ""), ("bee", "75%", ""), ("ant", "75%", ""),
    ]  # fmt: skip
    (table,) = classes.blocks
    assert isinstance(table, Table) and table.rows[0].cells == ["class 0", "4", "0.0%", "50.0%"]
    assert [row.cells[0] for row in table.rows] == [f"class {i}" for i in range(5)]
    assert confusion.blocks and confusion.beside
