import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from metaformer.config import EmaConfig, TrainConfig
from metaformer.report.blocks import Cell, Example, Examples, Matrix, Row, Section, Table
from metaformer.report.page import TaskReport, charts, render, settings, tiles

LOG: list[dict[str, Any]] = [
    {"kind": "train", "step": 1, "epoch": 0, "loss": 2.0, "lr": 0.1, "images_per_second": 50.0},
    {"kind": "train", "step": 2, "epoch": 0, "loss": 1.0, "lr": 0.2, "images_per_second": 1500.0},
    {"kind": "eval", "step": 2, "epoch": 1, "miou": 0.25},
]
STATE: dict[str, Any] = {
    "card": {"name": "net", "classes": ["a", "b"]},
    "metric": "miou",
    "metrics": {"miou": 0.25, "loss": 1.5, "other": 1.0},
    "step": 1200,
    "epoch": 3,
}
EVIL = "<script>alert(1)</script>"


def report(*sections: Section, text: str = "text") -> TaskReport:
    return TaskReport(
        {"miou": "mIoU", "loss": "loss"}, {"images": 5000}, sections, text, f"use BEST {text}", text
    )


def page(*sections: Section, text: str = "text") -> str:
    return render(report(*sections, text=text), STATE, TrainConfig(), LOG, Path("runs/a/best"), (), text)


class Tags(HTMLParser):
    """Check that tags close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_every_block_is_escaped_and_well_formed() -> None:
    long = Table((EVIL, "b"), [Row([EVIL, "50.0%"], "rgb(1 2 3)")] * 31, bar=1, left=2)
    matrix = Matrix([EVIL], [[Cell(EVIL, EVIL, 0.9)]], EVIL)
    example = Example({EVIL: "data:,", "gone": None}, EVIL, EVIL, EVIL, EVIL, False, [(EVIL, "red")], 2)
    text = page(
        Section(EVIL, [matrix], [long], note=EVIL),
        Section("images", [Examples(EVIL, [example])]),
        Section("empty", []),
        text=EVIL,
    )
    assert "<script" not in text and text.count("&lt;script&gt;") > 40
    assert not Tags(text).open and text.startswith("<!doctype html>")
    assert not re.search(r"(src|href)=\"(?!data:)", text)  # nothing from elsewhere
    assert ">1 more<" in text and ">gone<" in text and "and 2 more" in text and ">empty<" not in text
    assert text.count('style="width: 50.0%"') == 31 and 'class="strong"' in text and 'class="bad"' in text
    assert "use runs/a/best" in text and "net on : 2 classes" in text


def test_tiles_are_metrics_throughput_data_and_the_best_step() -> None:
    assert tiles(report(), STATE, LOG, "step") == [
        ("25.00%", "validation mIoU"),
        ("1.5000", "validation loss"),
        ("1,500", "training images per second"),
        ("5,000", "validation images"),
        ("1,200", "step of the best weights"),
    ]
    assert tiles(report(), STATE, [], "epoch")[-2:] == [
        ("5,000", "validation images"), ("3", "epoch of the best weights"),
    ]  # fmt: skip


def test_charts_show_the_log() -> None:
    score, loss, rates = charts(LOG, "miou", "mIoU", "step")
    assert score[0] == "Validation mIoU" and "0.25 at 2" in score[2] and ">step</text>" in score[2]
    assert loss[1] == [] and rates[2].count("polyline") == 1
    both = charts([*LOG, {**LOG[2], "loss": 1.5}], "miou", "mIoU", "epoch")
    assert both[1][1] == ["training", "validation"] and both[1][2].count("polyline") == 2
    assert "nothing logged" in charts([], "miou", "mIoU", "epoch")[0][2]


def test_settings_mark_what_differs_and_leave_out_hidden_sections() -> None:
    found = dict(settings(TrainConfig(ema=EmaConfig(0.5), seed=3), ["segment", "data.root"]))
    assert ("seed", "3", True) in found["run"] and ("task", "classify", False) in found["run"]
    assert found["ema"] == [("decay", "0.5", True), ("evaluate", "True", False)]
    assert "segment" not in found and "loss" in found
    assert "root" not in [name for name, *_ in found["data"]]
