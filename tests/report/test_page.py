import base64
import io
from typing import Any

from PIL import Image

from metaformer.config import EmaConfig, TrainConfig
from metaformer.report.page import address, charts, rate, rgb, settings

LOG: list[dict[str, Any]] = [
    {"kind": "train", "step": 1, "epoch": 0, "loss": 2.0, "lr": 0.1, "images_per_second": 50.0},
    {"kind": "train", "step": 2, "epoch": 0, "loss": 1.0, "lr": 0.2, "images_per_second": 1500.0},
    {"kind": "eval", "step": 2, "epoch": 1, "miou": 0.25},
]


def test_charts_show_what_was_logged() -> None:
    score, loss, rates = charts(LOG, "miou", "mIoU", "step")
    assert score[0] == "Held-out mIoU" and "0.25 at 2" in score[2] and ">step</text>" in score[2]
    assert loss[1] == [] and rates[2].count("polyline") == 1
    both = charts([*LOG, {**LOG[2], "loss": 1.5}], "miou", "mIoU")
    assert both[1][1] == ["training", "held out"] and both[1][2].count("polyline") == 2
    assert "nothing logged" in charts([], "miou", "mIoU")[0][2]


def test_the_middle_rate_is_told() -> None:
    assert rate(LOG) == [("1,500", "training images a second")] and rate([]) == []


def test_images_lie_in_the_page() -> None:
    kind, data = address(Image.new("RGB", (5, 4))).split(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (5, 4) and rgb((1, 2, 3)) == "rgb(1 2 3)"


def test_settings_mark_what_differs_and_leave_out_other_tasks() -> None:
    found = dict(settings(TrainConfig(ema=EmaConfig(0.5), seed=3)))
    assert ("seed", "3", True) in found["run"] and ("task", "classify", False) in found["run"]
    assert found["ema"] == [("decay", "0.5", True), ("evaluate", "True", False)]
    assert "segment" not in found and "loss" in found
    other = dict(settings(TrainConfig(task="segment")))
    assert "segment" in other and "loss" not in other
