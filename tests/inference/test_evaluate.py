import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from metaformer.data.folder import ImageFolder
from metaformer.errors import ConfigError, DataError, UnknownName, WeightsError
from metaformer.factory import create_model
from metaformer.inference.evaluate import evaluate
from metaformer.inference.model import load_model


def test_metrics_are_those_of_a_plain_loop(classify_run: Path, pets: Path) -> None:
    report = evaluate(classify_run, batch_size=4, workers=0, device="cpu")
    loaded = load_model(classify_run)
    folder, model = ImageFolder(pets, "val"), loaded.model.eval()
    transform = loaded.preprocess.transform()
    with torch.inference_mode():
        logits = torch.cat([model(transform(folder.image(i))[None]) for i in range(len(folder))])
    labels = torch.tensor(folder.labels)
    assert report.images == 15 and report.k == 3 and report.top5 == 1.0
    assert report.top1 == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    assert report.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
    table = torch.zeros(3, 3, dtype=torch.int64)
    for label, guess in zip(folder.labels, logits.argmax(1).tolist(), strict=True):
        table[label, guess] += 1
    assert torch.equal(report.confusion, table)
    assert [row.name for row in report.per_class] == ["ant", "bee", "cat"]
    assert sum(row.correct for row in report.per_class) / 15 == pytest.approx(report.top1)


def test_the_batch_size_and_workers_do_not_matter(classify_run: Path) -> None:
    one, other = (
        evaluate(classify_run, batch_size=1, workers=0),
        evaluate(classify_run, batch_size=7, workers=2),
    )
    assert one.top1 == other.top1 and torch.equal(one.confusion, other.confusion)
    assert one.loss == pytest.approx(other.loss, rel=1e-5)


def test_the_best_weights_are_evaluated_as_in_training(classify_run: Path) -> None:
    state = json.loads((classify_run / "best" / "state.json").read_text())
    report = evaluate(classify_run, batch_size=4, workers=0)
    assert report.metrics == pytest.approx(state["metrics"])
    step = classify_run / "checkpoints" / "step_4"
    assert evaluate(step, batch_size=4, workers=0).loss == pytest.approx(report.loss)
    assert evaluate(step, batch_size=4, workers=0, raw=True).loss != pytest.approx(report.loss, rel=1e-6)


def test_flip_and_crops_average_views(classify_run: Path) -> None:
    plain = evaluate(classify_run, workers=0, crop=0.8)
    assert evaluate(classify_run, workers=0, crop=0.8, flip=True).loss != plain.loss
    assert evaluate(classify_run, workers=0, crop=0.8, crops=5).loss != plain.loss


def test_a_model_by_name_with_a_checkpoint(pets: Path, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    save_file(create_model("poolformer_n", num_classes=3).state_dict(), file)
    report = evaluate("poolformer_n", pets, checkpoint=file, image_size=32, workers=0)
    assert report.images == 15 and report.classes == ["ant", "bee", "cat"]
    with pytest.raises(WeightsError, match="3 classes"):
        evaluate("poolformer_n", pets, checkpoint=file, class_names=list("abcd"), workers=0)


def test_examples_show_mistakes_first_and_then_right_answers(classify_run: Path) -> None:
    report = evaluate(classify_run, workers=0)
    wrong = [example for example in report.examples if not example.right]
    assert len(wrong) == report.images - round(report.top1 * report.images)
    assert [e.score for e in wrong] == sorted((e.score for e in wrong), reverse=True)
    assert all(Path(example.path).is_file() for example in report.examples)


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"amp": "fp8"}, ConfigError, "amp: 'fp8'"),
        ({"device": "cuda:99"}, ConfigError, "cuda:99"),
        ({"split": "nowhere"}, DataError, "nowhere"),
        ({"batch_size": 0}, ConfigError, r"batch_size\b.*0"),
        ({"crop": 1.5}, ConfigError, r"crop\b.*1\.5"),
        ({"crops": 3}, ConfigError, r"crops\b.*3"),
        ({"scales": [1.0]}, ConfigError, "scales: .*semantic segmentation.*image classification"),
        ({"flipp": True}, UnknownName, "did you mean flip"),
    ],
)
def test_wrong_options_are_named(
    classify_run: Path, options: dict[str, Any], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        evaluate(classify_run, **{"workers": 0, **options})


def test_wrong_sources_are_named(tmp_path: Path, pets: Path) -> None:
    with pytest.raises(ConfigError, match="nothing"):
        evaluate(tmp_path / "nothing", pets)
    with pytest.raises(ConfigError, match=r"poolformer_s13.*poolformer_s12"):
        evaluate("poolformer_s13", pets)
    with pytest.raises(WeightsError, match=str(tmp_path)):
        evaluate(tmp_path, pets)
