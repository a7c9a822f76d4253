"""Pages, blocks and charts."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from PIL import Image

from metaformer.config import DataConfig, EmaConfig, TrainConfig
from metaformer.report.blocks import (
    CONFUSIONS,
    MAX_BESIDE,
    MAX_MATRIX,
    ROWS,
    Cell,
    Code,
    Example,
    Examples,
    Figure,
    Figures,
    Link,
    Listing,
    Matrix,
    Note,
    Row,
    Section,
    Table,
    confusion_section,
    css_color,
    data_uri,
    percentage,
    worst_and_best,
)
from metaformer.report.chart import (
    COLORS,
    Axis,
    Effect,
    Line,
    Point,
    dot_chart,
    forest_chart,
    front,
    line_chart,
    scatter_chart,
    ticks,
)
from metaformer.report.markdown import to_markdown
from metaformer.report.page import TaskReport, charts, cost, render, render_gallery, settings, tiles


def evaluation(counts: list[list[int]], entries: bool = False) -> dict[str, Any]:
    """What a task's evaluation saves of a confusion matrix."""
    flat = [(i, j, n) for i, row in enumerate(counts) for j, n in enumerate(row) if n]
    matrix = {"confusion_entries": flat} if entries else {"confusion": counts}
    return {"per_class": [{"name": f"class {i}"} for i in range(len(counts))], **matrix}


def test_rows_of_a_long_table_are_folded() -> None:
    table = Table(("a",), [Row([str(i)]) for i in range(ROWS + 2)])
    assert len(table.shown) == ROWS and [row.cells for row in table.folded] == [[str(ROWS)], [str(ROWS + 1)]]


@pytest.mark.parametrize("entries", [True, False])
def test_confusions_are_listed_most_frequent_first(entries: bool) -> None:
    section = confusion_section(evaluation([[90, 10, 0], [60, 40, 0], [0, 0, 0]], entries), "pixels")
    (table,) = section.beside or section.blocks
    assert isinstance(table, Table)
    assert [row.cells for row in table.rows] == [
        ["class 1", "class 0", "60", "60.0%"], ["class 0", "class 1", "10", "10.0%"],
    ]  # fmt: skip


@pytest.mark.parametrize(("percent", "texts"), [(False, ["900", "97", "3"]), (True, ["90", "10", "·"])])
def test_a_matrix_shows_counts_or_percentages(percent: bool, texts: list[str]) -> None:
    section = confusion_section(evaluation([[900, 97, 3], [0, 1, 0], [0, 0, 0]]), "images", percent)
    (matrix,) = section.blocks
    assert isinstance(matrix, Matrix) and not section.wide
    assert [cell.text for cell in matrix.rows[0]] == texts
    assert matrix.rows[0][1].title == "97 images" and matrix.rows[1][0].text == ""


def test_many_classes_have_a_list_alone() -> None:
    size = MAX_MATRIX + 1
    counts = [[5 if i == j else int(j == (i + 1) % size) for j in range(size)] for i in range(size)]
    (table,) = confusion_section(evaluation(counts), "images").blocks
    assert isinstance(table, Table) and len(table.rows) == CONFUSIONS
    few = [row[: MAX_BESIDE + 1] for row in counts[: MAX_BESIDE + 1]]
    assert confusion_section(evaluation(few), "images").wide
    long = evaluation([[3, 1], [0, 3]])
    assert not confusion_section(long, "images").wide
    long["per_class"][0]["name"] = "a_class_with_a_long_name"
    assert confusion_section(long, "images").wide
    (none,) = confusion_section(evaluation([[3, 0], [0, 3]]), "images").beside
    assert isinstance(none, Table) and not none.rows


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([3, 0, 4, 1, 2], [("Worst", ["0", "1", "2"]), ("Best", ["4", "3"])]),
        ([3], [("Worst", ["3"])]),
        ([], []),
    ],
)
def test_examples_are_the_worst_and_the_best(scores: list[int], expected: list[Any]) -> None:
    groups = worst_and_best(
        [{"f1": score} for score in scores], "f1", lambda example: Example({}, str(example["f1"]))
    )
    assert [(group.title, [one.value for one in group.examples]) for group in groups] == expected


def test_images_and_numbers_as_the_page_needs_them() -> None:
    kind, data = data_uri(Image.new("RGB", (5, 4))).split(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (5, 4)
    assert css_color((1, 2, 3)) == "rgb(1 2 3)"
    assert (percentage(0.1234), percentage(None)) == ("12.3%", "–")


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (3.2, 47.0, [0, 10, 20, 30, 40, 50])],
)
def test_ticks_are_round_and_span_the_range(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


def test_a_chart_is_valid_svg_with_its_points_inside() -> None:
    chart = line_chart(
        [Line("a<b", [(0, 1.0), (5, 3.0), (6, float("nan"))], dots=True)], "step & time", label='"x"'
    )
    root = ElementTree.fromstring(str(chart))
    line = next(node for node in root if node.tag == "polyline")
    places = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
    assert len(places) == 2 and places[0][1] > places[1][1]
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
    assert "a&lt;b" in str(chart) and "step &amp; time" in str(chart)


@pytest.mark.parametrize("points", [[(3, 0.5)], [(1, 0.0), (2, 0.0)]])
def test_one_point_or_a_flat_line_can_be_drawn(points: list[tuple[float, float]]) -> None:
    assert re.search(r"<(circle|polyline)", str(line_chart([Line("a", points)], "x", percent=True)))


def test_nothing_logged_is_said() -> None:
    assert "nothing logged" in str(line_chart([Line("a", [])], "x"))


def nodes(chart: str, tag: str, kind: str = "") -> list[ElementTree.Element]:
    """Elements of a chart, which is well-formed and lies within its frame."""
    root = ElementTree.fromstring(chart)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for node in root.iter():
        for name, most in (
            ("cx", width),
            ("cy", height),
            ("x1", width),
            ("x2", width),
            ("x", width),
            ("y", height),
        ):
            assert 0 <= float(node.attrib.get(name, 0)) <= most, node.attrib
    return [node for node in root.iter(tag) if kind in node.attrib.get("class", "").split() or not kind]


def test_an_axis_of_ratios_has_round_values_at_equal_ratios() -> None:
    axis = Axis(0.0005, 0.008, 0, 100, ratios=True)
    assert axis.ticks() == [0.0005, 0.001, 0.002, 0.005]
    assert axis(0.002) == pytest.approx(50)
    assert Axis(1e-6, 1e3, 0, 1, ratios=True).ticks() == [10.0**power for power in range(-6, 4)]
    assert Axis(98, 103, 0, 1, ratios=True).ticks() == [98, 99, 100, 101, 102, 103]


def test_lines_mark_what_was_chosen_and_have_colors_again_when_there_are_many() -> None:
    lines = [Line(f"{i}", [(0.001, i), (0.004, i + 1)], dots=True, mark=0.004) for i in range(COLORS + 1)]
    chart = line_chart(lines, "rate", ratios=True)
    rings, paths = nodes(chart, "circle", "ring"), nodes(chart, "polyline")
    assert len(rings) == len(lines) and {ring.attrib["cx"] for ring in rings} == {"408.0"}
    assert paths[COLORS].attrib["class"].split() == ["line", "c0", "again"]


def test_a_forest_plot_has_effects_around_zero_and_a_zone() -> None:
    rows = [Effect("a<b", 1.2, 0.4, 2.0, "good"), Effect("c" * 40, -0.1, -0.4, 0.2, "open")]
    chart = forest_chart(rows, "points & more", 0.5, label='"x"')
    (zero,), (zone,) = nodes(chart, "line", "zero"), nodes(chart, "rect", "zone")
    places = [float(node.attrib["cx"]) for node in nodes(chart, "circle")]
    assert places[1] < float(zero.attrib["x1"]) < places[0]
    middle = float(zone.attrib["x"]) + float(zone.attrib["width"]) / 2
    assert middle == pytest.approx(float(zero.attrib["x1"]), abs=0.1)
    assert "a&lt;b +1.2, +0.4 to +2<" in chart and "c…" in chart and len(nodes(chart, "g", "open")) == 1


def test_dots_stand_in_rows_with_their_mean() -> None:
    chart = dot_chart([("a", [1.0, 2.0, 6.0]), ("none", [])], "percent")
    dots, (mean,) = nodes(chart, "circle", "seed"), nodes(chart, "line", "mean")
    assert len({dot.attrib["cy"] for dot in dots}) == 1
    assert float(mean.attrib["x1"]) == pytest.approx(sum(float(d.attrib["cx"]) for d in dots) / 3, abs=0.1)
    assert "nothing yet" in dot_chart([("a", [])], "percent") and nodes(
        dot_chart([("a", [3.0])], "x"), "circle"
    )


def test_the_front_is_what_no_cheaper_point_exceeds() -> None:
    points = [Point("a", 2, 5), Point("b", 1, 3), Point("c", 3, 4), Point("d", 4, 6), Point("e", 2, 4)]
    assert [point.name for point in front([*points, Point("control", 0.5, 9, faint=True)])] == ["b", "a", "d"]
    chart = scatter_chart([*points, Point("<", 0.5, 9, faint=True)], "cost")
    assert len(nodes(chart, "circle")) == 6 and len(nodes(chart, "polyline", "front")) == 1
    assert "nothing yet" in scatter_chart([], "cost")
    assert nodes(scatter_chart([Point("a", 2, 5)], "cost"), "circle")


def test_names_of_points_keep_off_each_other() -> None:
    chart = scatter_chart([Point(f"network {i}", 100 + i / 50, 80 + i / 50) for i in range(6)], "cost")
    names = [node for node in nodes(chart, "text") if str(node.text).startswith("network")]
    boxes = [(float(n.attrib["x"]), float(n.attrib["y"])) for n in names]
    apart = [abs(a[0] - b[0]) > 50 or abs(a[1] - b[1]) > 9 for a in boxes for b in boxes if a != b]
    assert len(boxes) == len(set(boxes)) == 6 and all(apart)


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
    "total": 2,
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


def test_names_of_any_length_keep_the_page_in_shape() -> None:
    """Column names of a matrix stand upright, pictures enlarge, and nothing breaks into letters."""
    names = [f"a_class_with_a_very_long_name_{i}" for i in range(7)]
    cells = [[Cell("1", "1 image", 0.1) for _ in names] for _ in names]
    example = Example({"image": "data:,", "prediction": "data:,"}, names[0], note=names[1])
    text = page(
        Section("Confusion", [Matrix(names, cells, "")]), Section("images", [Examples("a", [example])])
    )
    assert all(f"<span>{name}</span>" in text for name in names) and "writing-mode: vertical-rl" in text
    assert text.count('<details class="zoom">') == text.count("<img ") == 2
    # only notes, which hold paths, may break inside a word
    assert all(line.startswith(".notes ") for line in text.splitlines() if "anywhere" in line)


def test_the_page_says_what_the_run_cost_and_shows_training_samples() -> None:
    log = [{**LOG[0], "step": 10, "memory_gb": 1.0}, {**LOG[1], "step": 40, "memory_gb": 2.5}]
    config = TrainConfig(data=DataConfig(batch_size=100))
    text = cost({**STATE, "device": "a processor", "world_size": 2}, config, log)
    assert text == (
        "0 min 22 s for 40 steps, without evaluation, 182 images per second, 2.5 GB of memory at most, "
        "on 2 × a processor"
    )
    assert cost(STATE, config, []) == ""
    samples = [Example({"sample": "data:,"}, "a cat")]
    page = render(report(), STATE, config, log, Path("runs/a/best"), (), "", samples)
    assert "Cost: 0 min 22 s" in page and "as augmented" in page and "a cat" in page and "Mixup" in page
    assert "as augmented" not in render(report(), STATE, config, log, Path("runs/a/best"), (), "")


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


def test_sections_are_the_same_page_in_html_and_markdown() -> None:
    chart = Figure("a chart", ["one", "two"], line_chart([Line("one", [(0, 1), (1, 2)])], "x"))
    sections = [
        Section(
            EVIL,
            [Listing([EVIL, "a *b*"]), Figures([chart]), Note("small"), Code("a: `b`\n```\n<i>")],
            note="end",
        ),
        Section(
            "rows", [Table(("run", "b|c"), [Row([Link("x_1", "runs/x_1/"), "2"])]), Table(("none",), [])]
        ),
        Section("empty", []),
    ]
    page = render_gallery(EVIL, "below", sections, "last", [("3", "seeds")])
    assert not Tags(page).open and "<script" not in page and ">empty<" not in page
    assert '<a href="runs/x_1/">x_1</a>' in page and "<li>a *b*</li>" in page and "&lt;i&gt;" in page
    assert page.count('<i class="c') == 2 and "<b>3</b><span>seeds</span>" in page
    text = to_markdown(EVIL, "below", sections, "last", [("3", "seeds")])
    assert text.startswith("# \\<script\\>alert(1)\\</script\\>\n\nbelow\n\n- seeds: **3**\n")
    assert "````\na: `b`\n```\n<i>\n````" in text and "- a \\*b\\*" in text
    assert "| run | b\\|c |\n| :-- | --: |\n| [x\\_1](runs/x_1/) | 2 |\n\nnone\n\nlast\n" in text
    assert "Charts on the page: a chart." in text and "empty" not in text
