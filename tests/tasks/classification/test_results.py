import json
from pathlib import Path

import pytest
import torch

from metaformer.errors import OutputError
from metaformer.tasks.classification.metrics import per_class
from metaformer.tasks.classification.results import Classification, ClassificationReport, Example
from metaformer.tasks.report import LARGEST_MATRIX


def report(classes: int, real: float | None = None) -> ClassificationReport:
    confusion = torch.eye(classes, dtype=torch.int64) * 3
    confusion[0, 1] = 2
    table = per_class(confusion, [f"c{i}" for i in range(classes)])
    examples = (Example("a.png", "c0", "c1", 0.5),)
    return ClassificationReport(
        3 * classes + 2, 0.9, 1.0, 5, 0.25, tuple(table), confusion, real, 4, examples
    )


def test_report_as_json() -> None:
    values = json.loads(json.dumps(report(6, real=0.75).to_dict()))
    assert (values["top1"], values["top5"], values["loss"], values["real"]) == (0.9, 1.0, 0.25, 0.75)
    assert values["confusion"][0] == [3, 2, 0, 0, 0, 0] and values["per_class"][0]["accuracy"] == 0.6
    assert values["examples"] == [
        {"path": "a.png", "label": "c0", "predicted": "c1", "score": 0.5, "index": -1}
    ]
    assert "real" not in report(6).to_dict()


def test_report_of_many_classes_holds_nonzero_confusions() -> None:
    values = report(LARGEST_MATRIX + 1).to_dict()
    assert "confusion" not in values and len(values["confusion_entries"]) == LARGEST_MATRIX + 2
    assert [0, 1, 2] in values["confusion_entries"]


def test_report_as_text_begins_with_the_weakest_class() -> None:
    text = report(30, real=0.5).text(rows=3)
    lines = text.splitlines()
    assert "90.00%" in lines[1] and "ReaL     50.00% (4 images)" in text
    assert lines[7].split()[:3] == ["c0", "5", "3"] and "27 classes that do better" in lines[-1]


def test_unwritable_report(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        report(2).save(tmp_path / "file" / "report.json")


def test_classification() -> None:
    result = Classification("x.png", ("cat", "dog"), (0.75, 0.25), (3, 1))
    assert (result.label, result.score) == ("cat", 0.75)
    assert json.loads(json.dumps(result.to_dict()))["indices"] == [3, 1]
