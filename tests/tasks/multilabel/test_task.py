"""From a run to its predictions."""

import csv
import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from metaformer import Predictor, evaluate, from_pretrained, train
from metaformer.errors import ConfigError
from metaformer.inference.model import load_model
from metaformer.tasks.multilabel.results import MultilabelReport, MultilabelResult
from toys import log_lines, tiny_config


@pytest.fixture(scope="module")
def run(tagged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tells green and blue blocks; not to be changed."""
    config = tiny_config(
        "multilabel",
        tagged,
        augment={"erase": 0.0, "scale": [0.8, 1.0]},
        multilabel={"loss": "asymmetric", "balance": True},
        optim={"lr": 1e-2},
        schedule={"epochs": 30, "warmup_epochs": 1},
        evaluate={"every": 10, "crop": 1.0},
    )
    return train(config, tmp_path_factory.mktemp("multilabel") / "run").run


def test_a_run_learns_and_keeps_its_thresholds(run: Path) -> None:
    report = evaluate(run, workers=0)
    assert isinstance(report, MultilabelReport) and report.images == 6 and report.map > 0.8
    model = load_model(run)
    assert model.metadata == report.thresholds and model.classes == ("blue", "green")
    best = max(line["map"] for line in log_lines(run, "eval"))
    assert report.map == pytest.approx(best)
    assert all(word in report.text() for word in ("mAP", "F1 micro", "threshold"))
    page = (run / "report.html").read_text()
    assert "Classes, the weakest first" in page and "green" in page


def test_predictions_are_labels_above_their_thresholds(run: Path, tagged: Path, tmp_path: Path) -> None:
    predictor = Predictor(run)
    (result,) = predictor(tagged / "val" / "02.png")
    assert isinstance(result, MultilabelResult) and set(result.labels) == {"green", "blue"}
    (image,) = predictor(Image.open(tagged / "val" / "02.png"))
    assert image.path == "" and image.scores == pytest.approx(result.scores)
    assert Predictor(run, threshold=1.0)(tagged / "val" / "02.png")[0].labels == ()
    write = predictor.model.spec.write
    lines = list(write(predictor.predictions(tagged / "val"), tmp_path / "out", predictor.model, draw=True))
    assert len(lines) == 3 and len(list((tmp_path / "out" / "images").glob("*.jpg"))) == 6
    with (tmp_path / "out" / "predictions.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert rows[2]["labels"] == " ".join(result.labels) and float(rows[2]["green"]) == pytest.approx(
        result.scores[1], abs=1e-6
    )
    plain = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert plain[2]["labels"] == list(result.labels) and set(plain[2]["scores"]) == {"green", "blue"}


def test_the_hubs_form_keeps_task_and_thresholds(run: Path, tagged: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "best", tmp_path / "hub")
    for name in ("manifest.json", "state.json"):
        (tmp_path / "hub" / name).unlink()
    model, own = load_model(tmp_path / "hub"), load_model(run)
    assert model.task == own.task and model.metadata == own.metadata and model.classes == own.classes
    assert from_pretrained(tmp_path / "hub").num_classes == 2
    report = evaluate(tmp_path / "hub", tagged, workers=0)
    assert report.metrics == pytest.approx(evaluate(run, workers=0).metrics)


def test_flip_crops_and_one_threshold(run: Path) -> None:
    report = evaluate(run, flip=True, crops=5, threshold=0.25, workers=0)
    assert isinstance(report, MultilabelReport) and report.thresholds == (0.25, 0.25)
    with pytest.raises(ConfigError, match="threshold"):
        evaluate(run, threshold=2.0, workers=0)
