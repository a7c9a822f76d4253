from typing import Any

from metaformer.config import TrainConfig
from metaformer.tasks.classification.report import classify_content


def state(classes: int) -> dict[str, Any]:
    rows = [
        {
            "name": f"class {i}",
            "images": 4,
            "correct": i % 5,
            "predicted": 4,
            "accuracy": i % 5 / 4,
            "precision": 0.5,
        }
        for i in range(classes)
    ]
    card = {
        "name": "net",
        "classes": [row["name"] for row in rows],
        "preprocess": {"image_size": 64, "crop": 0.9, "interpolation": "bicubic"},
    }
    confusion = [[3 if i == j else int(j == i + 1) for j in range(classes)] for i in range(classes)]
    evaluation = {"images": 4 * classes, "per_class": rows, "confusion": confusion}
    figures = {"top1": 0.5, "loss": 1.25}
    return {"card": card, "evaluation": evaluation, "metrics": figures, "metric": "top1", "epoch": 7}


def test_few_classes_have_a_matrix_and_many_a_list() -> None:
    log = [{"kind": "train", "step": 1, "loss": 2.0, "lr": 0.1, "images_per_second": 99.0}]
    content = classify_content(state(3), TrainConfig(), log)
    assert [cell["count"] for cell in content["matrix"]["rows"][0][1]] == [3, 1, 0]
    assert content["confused"][0] == ("class 0", "class 1", 1) and content["left_out"] == 0
    assert ("50.00%", "held-out top1") in content["figures"] and (
        "99",
        "training images a second",
    ) in content["figures"]
    many = classify_content(state(40), TrainConfig(), log)
    assert many["matrix"] is None and many["left_out"] == 10 and many["classes"][0]["accuracy"] == "0.0%"
