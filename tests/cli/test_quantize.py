"""`metaformer quantize`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metaformer.bench import int8_speed
from metaformer.factory import create_model
from metaformer.weights.hub import save_pretrained

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier of pets."""
    pytest.importorskip("nncf")
    pytest.importorskip("openvino")
    torch.manual_seed(0)
    tiny = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "image_size": (32, 32)}
    model = create_model("poolformer_s12", num_classes=3, **tiny)
    model.pretrained_cfg.update(label_names=["ant", "bee", "cat"], input_size=(3, 32, 32))
    directory = tmp_path_factory.mktemp("saved")
    save_pretrained(model, directory)
    return directory


def test_from_a_classifier_to_predictions(saved: Path, pets: Path, cli: Cli, tmp_path: Path) -> None:
    out, file = tmp_path / "int8", tmp_path / "report.json"
    result = cli("quantize", saved, "--data", pets, "--out", out, "--json", file, "--rounds", 1)
    values = json.loads(file.read_text())
    assert result.status == 0 and "milliseconds an image" in result.out
    assert f"top-1  {values['float32']['top1']:>15.2%}" in result.out
    assert values["calibrated"] == 24 and set(values["speed"]["seconds"]) == {"1", "8"}
    result = cli("evaluate", out, "--data", pets, "--workers=0", "--device=cpu")
    assert result.status == 0 and f"top-1    {values['int8']['top1']:.2%}" in result.out
    result = cli("predict", out, pets / "val", "--device=cpu")
    assert result.status == 0 and len(result.out.splitlines()) == 15


def test_accuracy_is_reported_where_speed_cannot_be_measured(
    saved: Path, pets: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_speed, "WORKER", (sys.executable, "-c", "raise SystemExit('no torch here')"))
    out, file = tmp_path / "int8", tmp_path / "report.json"
    result = cli("quantize", saved, "--data", pets, "--out", out, "--json", file)
    assert result.status == 1 and "top-1" in result.out
    assert "speed of float32" in result.error and "no torch here" in result.error
    values = json.loads(file.read_text())
    assert values["calibrated"] == 24 and "speed" not in values
    assert cli("predict", out, pets / "val", "--device=cpu").status == 0


@pytest.mark.parametrize(
    ("options", "status", "named"),
    [("", 2, "--out"), ("--out OUT --rounds -1", 2, "--rounds -1"), ("--out OUT --images 1", 1, "images")],
)
def test_wrong_options_are_named(options: str, status: int, named: str, cli: Cli, tmp_path: Path) -> None:
    result = cli("quantize", "poolformer_n", *options.replace("OUT", str(tmp_path / "out")).split())
    assert result.status == status and named in result.error
