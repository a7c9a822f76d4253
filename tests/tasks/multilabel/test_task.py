"""From a run to its predictions."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from metaformer import Predictor, evaluate, from_pretrained, train
from metaformer.checkpoint.run_dir import read_log
from metaformer.config import TrainConfig
from metaformer.errors import ConfigError, DataError
from metaformer.inference.model import load_model
from metaformer.serialize import from_dict, to_dict
from metaformer.tasks.multilabel.results import MultilabelReport, MultilabelResult
from toys import Configure, build_task

Digest = Callable[[Path], dict[str, Any]]


@pytest.fixture(scope="module")
def run(tagged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tells green and blue blocks; not to be changed."""
    plain = {
        "task": "multilabel",
        "model": {"name": "poolformer_n", "overrides": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}},
        "data": {"root": str(tagged), "image_size": 32, "batch_size": 6, "workers": 0},
        "augment": {"auto_augment": None, "mixup": 0.0, "cutmix": 0.0, "erase": 0.0, "scale": [0.8, 1.0]},
        "multilabel": {"loss": "asymmetric", "balance": True},
        "optim": {"lr": 1e-2},
        "schedule": {"epochs": 30, "warmup_epochs": 1, "min_lr": 0.0},
        "evaluate": {"every": 10, "crop": 1.0},
        "runtime": {"device": "cpu", "threads": 1},
    }
    return train(from_dict(TrainConfig, plain), tmp_path_factory.mktemp("multilabel") / "run").run


def test_a_run_learns_and_keeps_its_thresholds(run: Path) -> None:
    report = evaluate(run, workers=0)
    assert isinstance(report, MultilabelReport) and report.images == 6 and report.map > 0.8
    model = load_model(run)
    assert model.metadata == report.thresholds and model.classes == ("blue", "green")
    best = max(line["map"] for line in read_log(run) if line["kind"] == "eval")
    assert report.map == pytest.approx(best)
    assert {"mAP", "F1 micro", "threshold"} <= set(report.text().replace("  ", "\n").split("\n")) | {
        "threshold"
    }
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


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_was_stopped_resumes_bit_for_bit(
    configure_multilabel: Configure, tmp_path: Path, digest: Digest, workers: int
) -> None:
    config = configure_multilabel(
        model={"drop_path_rate": 0.2},
        augment={"erase": 0.5, "auto_augment": "rand-m9-mstd0.5-inc1"},
        multilabel={"loss": "asymmetric"},
        schedule={"epochs": 3},
        ema={"decay": 0.9},
        runtime={"save_every": 1},
        data={"workers": workers},
    )
    train(config, tmp_path / "straight")
    shutil.copytree(tmp_path / "straight", tmp_path / "other")
    for step in (4, 5, 6):
        shutil.rmtree(tmp_path / "other" / "checkpoints" / f"step_{step}")
    shutil.rmtree(tmp_path / "other" / "best")
    again = replace(config, data=replace(config.data, workers=2 - workers))
    assert train(again, tmp_path / "other", resume="auto").complete
    for place in ("checkpoints/step_5", "checkpoints/step_6"):
        one, other = (tmp_path / name / place for name in ("straight", "other"))
        assert all(torch.equal(value, digest(other)[name]) for name, value in digest(one).items())
        cards = [json.loads((directory / "state.json").read_text())["card"] for directory in (one, other)]
        assert cards[0] == cards[1], "thresholds too"


def measure(config: str, out: str) -> None:
    """What each of two processes does."""
    torch.set_num_threads(1)
    settings = from_dict(TrainConfig, json.loads(Path(config).read_text()))
    train(settings, f"{out}/two")
    print(json.dumps(evaluate(f"{out}/two", workers=0).metrics))


def test_two_processes_equal_one(
    configure_multilabel: Configure, tmp_path: Path, two_ranks: Callable[..., list[str]]
) -> None:
    config = configure_multilabel(optim={"name": "sgd", "lr": 1e-2})
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    outs = two_ranks(measure, str(tmp_path / "config.json"), str(tmp_path))
    train(config, tmp_path / "one")
    alone = evaluate(tmp_path / "one", workers=0).metrics
    for out in outs:
        assert json.loads(out.splitlines()[-1]) == pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize(
    ("sections", "error", "noun"),
    [
        ({"multilabel": {"pos_weight": [1.0]}}, ConfigError, r"multilabel\.pos_weight"),
        ({"multilabel": {"class_names": "none.txt"}}, DataError, r"none\.txt"),
        ({"multilabel": {"layout": "jsonl"}}, DataError, r"train\.jsonl"),
        ({"model": {"num_classes": 3}}, ConfigError, r"model\.num_classes"),
        ({"data": {"val": "test"}}, DataError, r"test"),
    ],
)
def test_wrong_settings_are_one_clear_line(
    configure_multilabel: Configure, sections: dict[str, Any], error: type[Exception], noun: str
) -> None:
    with pytest.raises(error, match=noun):
        build_task(configure_multilabel(**sections))


@pytest.mark.parametrize(
    ("field", "value"),
    [("gamma_neg", -1.0), ("margin", 1.0), ("threshold", 1.5), ("separator", ""), ("pos_weight", [-1.0])],
)
def test_values_out_of_range(configure_multilabel: Configure, tmp_path: Path, field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"multilabel\.{field}"):
        train(configure_multilabel(multilabel={field: value}), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"multilabel\.balance"):
        train(configure_multilabel(multilabel={"balance": True, "pos_weight": [1.0, 2.0]}), tmp_path / "run")
