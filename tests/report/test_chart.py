import re
from xml.etree import ElementTree

import pytest

from metaformer.report.chart import Line, line_chart, ticks


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
