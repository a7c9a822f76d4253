import csv
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metaformer.errors import ConfigError, DataError, OutputError
from metaformer.tasks.classification.results import Classification
from metaformer.tasks.classifier import write_predictions
from metaformer.tasks.multilabel.results import MultilabelResult
from metaformer.tasks.outputs import (
    Output,
    Prediction,
    Writer,
    drawn_output,
    json_line,
    write_outputs,
)
from metaformer.tasks.report import class_table

Make = Callable[..., Prediction[Any]]


@contextmanager
def names_into(names: list[str]) -> Iterator[Writer[Any]]:
    yield lambda name, prediction: names.append(name)
    names.append("end")


def test_every_output_gets_every_prediction_under_one_name(segmented: Make, tmp_path: Path) -> None:
    first: list[str] = []
    second: list[str] = []

    def outputs(place: Path) -> list[Output]:
        folder = place / "drawn"
        return [
            Output(names_into(first), "lines", place / "lines"),
            Output(names_into(second), "images", folder, folder),
        ]

    predictions = [
        segmented("a/x.jpg"),
        segmented("b/x.jpg"),
        segmented("c.gif", frame=0),
        segmented("c.gif", frame=1),
    ]
    lines = list(write_outputs(predictions, tmp_path, outputs, needs_folder={}))
    assert first == second == ["x", "x_2", "c_000000", "c_000001", "end"]
    assert lines == [f"4 lines: {tmp_path / 'lines'}", f"4 images: {tmp_path / 'drawn'}"]


def test_frames_of_a_video_are_drawn_from_the_video(detected: Make, segmented: Make, tmp_path: Path) -> None:
    for make in (detected, segmented):
        made = make("x.png")
        assert made.image is not None
        file = tmp_path / "clip.gif"
        dark = Image.new("RGB", made.image.size)
        dark.save(file, save_all=True, append_images=[made.image.convert("RGB")], duration=40)
        result = replace(made.result, path=str(file)).drawn_on(None, 1)
        assert np.asarray(result.plot()).mean() > np.asarray(result.drawn_on(None, 0).plot()).mean() + 5
        assert result.filtered(0.1).plot() == result.plot() if make is detected else True
        with pytest.raises(DataError, match="an image of 5x5"):
            result.plot(Image.new("RGB", (5, 5)))


def test_images_in_an_output_folder_are_not_overwritten(segmented: Make, tmp_path: Path) -> None:
    prediction = segmented("a/x.jpg")

    def outputs(place: Path) -> list[Output]:
        return [Output(names_into([]), "images", place, Path(prediction.path).parent)]

    with pytest.raises(OutputError, match=r"x\.jpg"):
        list(write_outputs([prediction], tmp_path / "out", outputs, needs_folder={}))


def test_predictions_without_a_place_are_json_lines_with_the_frame(segmented: Make) -> None:
    lines = write_outputs(
        [segmented(), segmented(frame=3)], None, lambda place: [], needs_folder={"draw": False}
    )
    assert [json.loads(line).get("frame") for line in lines] == [None, 3]
    assert json_line(segmented(frame=3))["frame"] == 3 and "frame" not in json_line(segmented())


@pytest.mark.parametrize(
    ("out", "needs_folder", "error", "named"),
    [
        (None, {"draw": True, "coco": None}, ConfigError, "draw"),
        ("out.json", {}, ConfigError, r"out\.json"),
        ("out.csv", {}, ConfigError, r"out\.csv"),
        ("file/out", {}, OutputError, "file"),
        ("file/out.jsonl", {}, OutputError, "file"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_before_the_work(
    out: str | None, needs_folder: dict[str, Any], error: type[Exception], named: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("kept")

    def work() -> Iterator[Prediction[Any]]:
        raise AssertionError("worked in vain")
        yield

    place = None if out is None else tmp_path / out
    with pytest.raises(error, match=named):
        list(write_outputs(work(), place, lambda _: [], needs_folder=needs_folder, suffixes=(".jsonl",)))
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("fps", [0, -1, 2000, float("nan")])
def test_frames_a_second_are_positive_and_at_most_1000(fps: float, tmp_path: Path) -> None:
    drawn_output(tmp_path, lambda prediction, moving: prediction.pixels(), 25)
    with pytest.raises(ConfigError, match="fps"):
        drawn_output(tmp_path, lambda prediction, moving: prediction.pixels(), fps)


HOSTILE = ("line\nbreak", "=1+1", "\x1b[31mred", "+cat", "-dog", "@bee", "cat")


def test_cells_hold_no_formula_and_no_control_character(tmp_path: Path) -> None:
    labels = [Classification(f"{name}.png", (name, "cat"), (0.75, 0.25), (0, 1)) for name in HOSTILE]
    image = Image.new("RGB", (40, 30))
    list(write_predictions([Prediction(one, image) for one in labels], tmp_path, draw=True))
    text = (tmp_path / "predictions.csv").read_text()
    assert text.replace("\n", "").isprintable()
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["label"] for row in rows] == [
        "line\\nbreak", "'=1+1", "\\u001b[31mred", "'+cat", "'-dog", "'@bee", "cat",
    ]  # fmt: skip
    assert rows[1]["path"] == "'=1+1.png" and rows[1]["score"] == "0.750000"
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [line["labels"][0] for line in lines] == list(HOSTILE), "JSON has them as they are"
    assert len(list((tmp_path / "images").iterdir())) == len(HOSTILE)


def test_columns_named_by_classes_hold_no_formula(tmp_path: Path) -> None:
    result = MultilabelResult("a.png", ("=1+1", "two\nlines"), (0.75, 0.25), (0.5, 0.5))
    list(write_predictions([Prediction(result)], tmp_path / "a.csv"))
    assert (
        tmp_path / "a.csv"
    ).read_text() == "path,labels,'=1+1,two\\nlines\na.png,'=1+1,0.750000,0.250000\n"


def test_tables_of_classes_hold_no_control_character() -> None:
    lines = class_table(("class", "images"), [[name, "1"] for name in HOSTILE], 20)
    assert len(lines) == 1 + len(HOSTILE) and all(line.isprintable() for line in lines)
    assert len({len(line) for line in lines}) == 1, "columns are aligned"
