"""Results at a prompt and in notebooks."""

import importlib
import inspect
import pkgutil
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import metaformer
from metaformer.factory import create_model
from metaformer.inference.evaluate import evaluate
from metaformer.inference.predictor import Predictor
from metaformer.report.readable import MOST, Readable, brief
from metaformer.tasks import TASKS
from metaformer.training.train import TrainResult
from metaformer.weights.load import load_weights

SETTINGS = {"TrainConfig", "Targets", "Detections"}
"""Dataclasses that public functions give and that are no results to read."""


def results() -> list[type[Readable]]:
    """Every class of results."""
    for module in pkgutil.walk_packages(metaformer.__path__, "metaformer."):
        if not module.name.endswith("__main__") and "triton" not in module.name:
            importlib.import_module(module.name)
    found, left = [], [Readable]
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        if kind.__module__.startswith("metaformer.") and not inspect.isabstract(kind):
            found.append(kind)
    return sorted(found, key=lambda kind: kind.__name__)


def test_every_result_prints_as_text_and_is_short_in_a_list() -> None:
    kinds = results()
    assert len(kinds) > 15
    for kind in kinds:
        own: Any = kind
        assert is_dataclass(kind), kind
        assert own.__repr__ is Readable.__repr__, f"{kind}: say repr=False"
        assert own.__str__ is Readable.__str__ and own._repr_html_ is Readable._repr_html_, kind


def test_what_public_functions_give_is_a_result() -> None:
    public = [getattr(metaformer, name) for name in metaformer.__all__]
    given = {
        one.__name__: inspect.signature(one).return_annotation for one in public if inspect.isfunction(one)
    }
    for name, kind in given.items():
        if inspect.isclass(kind) and is_dataclass(kind) and kind.__name__ not in SETTINGS:
            assert issubclass(kind, Readable), name
    assert given["train"] is TrainResult


@dataclass(frozen=True, repr=False)
class Figures(Readable):
    """A result."""

    name: str
    values: Any

    def text(self) -> str:
        return f"<b>{self.name}</b>"

    def _images(self) -> list[Image.Image]:
        return [Image.new("RGB", (2000, 10))]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.123456789, "0.1235"),
        (np.float32(0.5), "0.5"),
        (1_000_000, "1000000"),
        (True, "True"),
        (None, "None"),
        (Path("a/b"), "'a/b'"),
        ((0.333333, "x"), "(0.3333, 'x')"),
        ({"top1": 2 / 3}, "{'top1': 0.6667}"),
        ([0] * (MOST + 1), "<7 items>"),
        (np.zeros((3, 4)), "<ndarray 3×4>"),
        (torch.zeros(2, 5), "<Tensor 2×5>"),
        (Figures("a", 1), "<Figures>"),
    ],
)
def test_values_are_brief(value: Any, expected: str) -> None:
    assert brief(value) == expected
    assert len(brief("long " * 100)) < 100


def test_notebooks_get_escaped_text_and_small_images() -> None:
    result = Figures("a\x1b", [1.0, 2.0])
    assert str(result) == r"<b>a\u001b</b>"
    assert repr(result) == r"Figures(name='a\x1b', values=[1, 2])"
    page = result._repr_html_()
    assert page.startswith(r"<pre>&lt;b&gt;a\u001b&lt;/b&gt;</pre><img ") and len(page) < 5000


@pytest.mark.parametrize("task", TASKS)
def test_predictions_say_what_they_found_and_show_it(task: str, untrained: dict[str, Path]) -> None:
    image = Image.new("RGB", (64, 48), "red")
    (result,) = Predictor(untrained[task], device="cpu")(image)
    assert str(result) and "\n" not in str(result) and len(repr(result)) < 400
    assert '<img src="data:image/jpeg;base64,' in result._repr_html_()
    unknown = result.drawn_on(None)
    assert "<img" not in unknown._repr_html_() and "<pre>" in unknown._repr_html_()


def test_reports_runs_and_weights_are_readable(classify_run: Path, pets: Path, tmp_path: Path) -> None:
    report = evaluate(classify_run, pets, workers=0, device="cpu")
    assert str(report) == report.text() and "top-1" in str(report)
    assert repr(report).startswith("ClassificationReport(images=15, top1=") and "\n" not in repr(report)
    loaded = load_weights(create_model("poolformer_n"), create_model("poolformer_n").state_dict())
    assert "100.0% of the model" in str(loaded) and "loaded=<" in repr(loaded)
    result = TrainResult(tmp_path, "top1", 0.5, 3, {"top1": 0.25}, 4, False)
    assert str(result).splitlines() == [
        "best top1 0.5000 at step 3 of 4",
        "last evaluation: top1 0.2500",
        f"run: {tmp_path}",
    ]
