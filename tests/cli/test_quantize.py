import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.bench import int8_speed
from metaformer.cli import main
from metaformer.factory import create_model
from metaformer.weights.hub import save_pretrained


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two classes in `data`, and in `net` a tiny classifier of them."""
    place, draw = tmp_path_factory.mktemp("place"), np.random.RandomState(0)
    for name in ("train/a", "train/b", "val/a", "val/b"):
        folder = place / "data" / name
        folder.mkdir(parents=True)
        for i in range(4):
            Image.fromarray(draw.randint(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    torch.manual_seed(0)
    tiny = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "image_size": (32, 32)}
    model = create_model("poolformer_s12", num_classes=2, **tiny)
    model.pretrained_cfg.update(label_names=["a", "b"], input_size=(3, 32, 32))
    save_pretrained(model, place / "net")
    return place


def test_from_a_classifier_to_predictions(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out, told = str(place / "data"), str(tmp_path / "int8"), tmp_path / "told.json"
    words = [str(place / "net"), "--data", data, "--out", out, "--json", str(told), "--rounds", "1"]
    assert main(["quantize", *words]) == 0
    shown = capsys.readouterr().out
    values = json.loads(told.read_text())
    assert f"top-1  {values['float32']['top1']:>15.2%}" in shown and "milliseconds an image" in shown
    assert values["calibrated"] == 8 and set(values["speed"]["seconds"]) == {"1", "8"}
    assert main(["evaluate", out, "--data", data, "--workers", "0", "--device", "cpu"]) == 0
    assert f"top-1    {values['int8']['top1']:.2%}" in capsys.readouterr().out
    assert main(["predict", out, str(place / "data" / "val"), "--device", "cpu"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8


def test_accuracy_is_kept_where_speed_cannot_be_measured(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_speed, "WORKER", (sys.executable, "-c", "raise SystemExit('no torch here')"))
    out, told = tmp_path / "int8", tmp_path / "told.json"
    words = [str(place / "net"), "--data", str(place / "data"), "--out", str(out), "--json", str(told)]
    assert main(["quantize", *words]) == 1
    shown = capsys.readouterr()
    *_, last = shown.err.splitlines()
    wanted = "metaformer: error: speed of float32: its process ended with status 1; no torch here"
    assert last == wanted and "top-1" in shown.out
    values = json.loads(told.read_text())
    assert values["calibrated"] == 8 and "speed" not in values
    assert main(["predict", str(out), str(place / "data" / "val"), "--device", "cpu"]) == 0


def test_one_line_for_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "poolformer_n"]) == 2
    assert "--out" in capsys.readouterr().err
    assert main(["quantize", "poolformer_n", "--out", str(tmp_path / "x"), "--rounds", "-1"]) == 2
    assert "--rounds -1: must be 0 or more" in capsys.readouterr().err
    assert main(["quantize", "poolformer_n", "--out", str(tmp_path / "x"), "--images", "1"]) == 1
    assert "images must be at least 2" in capsys.readouterr().err
