import base64
import io
from typing import Any

import pytest
from PIL import Image

from metaformer.report.blocks import (
    CONFUSIONS,
    MAX_BESIDE,
    MAX_MATRIX,
    ROWS,
    Example,
    Matrix,
    Row,
    Table,
    confusion_section,
    css_color,
    data_uri,
    percentage,
    worst_and_best,
)


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
