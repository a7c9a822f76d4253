import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer.cli import main
from metaformer.models import create_model, save_pretrained


def test_from_a_classifier_to_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("nncf")
    pytest.importorskip("openvino")
    draw = np.random.RandomState(0)
    for place in ("train/a", "train/b", "val/a", "val/b"):
        folder = tmp_path / "data" / place
        folder.mkdir(parents=True)
        for i in range(4):
            Image.fromarray(draw.randint(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    torch.manual_seed(0)
    tiny = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "image_size": (32, 32)}
    model = create_model("poolformer_s12", num_classes=2, **tiny)
    model.pretrained_cfg.update(label_names=["a", "b"], input_size=(3, 32, 32))
    save_pretrained(model, tmp_path / "net")
    data, out, told = str(tmp_path / "data"), str(tmp_path / "int8"), tmp_path / "told.json"
    words = [str(tmp_path / "net"), "--data", data, "--out", out, "--json", str(told), "--rounds", "1"]
    assert main(["quantize", *words]) == 0
    shown = capsys.readouterr().out
    values = json.loads(told.read_text())
    assert f"top-1  {values['float32']['top1']:>15.2%}" in shown and "milliseconds an image" in shown
    assert values["calibrated"] == 8 and set(values["speed"]["seconds"]) == {"1", "8"}
    assert main(["evaluate", out, "--data", data, "--workers", "0", "--device", "cpu"]) == 0
    assert f"top-1    {values['int8']['top1']:.2%}" in capsys.readouterr().out
    assert main(["predict", out, str(tmp_path / "data" / "val"), "--device", "cpu"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 8


def test_one_line_for_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "poolformer_n"]) == 2
    assert "--out" in capsys.readouterr().err
    assert main(["quantize", "poolformer_n", "--out", str(tmp_path / "x"), "--rounds", "-1"]) == 2
    assert "--rounds -1: must be 0 or more" in capsys.readouterr().err
    assert main(["quantize", "poolformer_n", "--out", str(tmp_path / "x"), "--images", "1"]) == 1
    assert "images must be at least 2" in capsys.readouterr().err
