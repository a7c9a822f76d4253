import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from metaformer.errors import ConfigError, OutputError
from metaformer.tasks.classification.results import Classification
from metaformer.tasks.classifier import write_predictions
from metaformer.tasks.outputs import Prediction
from metaformer.visualize.canvas import draw_bars

Predictions = list[Prediction[Classification]]


@pytest.fixture
def predictions(tmp_path: Path) -> Predictions:
    """Two images of the same file name, in two folders."""
    made = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (50, 40), (200, 30, 30)).save(tmp_path / folder / "x.png")
        path = str(tmp_path / folder / "x.png")
        made.append(Prediction(Classification(path, ("red", 'g,"r'), (0.75, 0.25), (1, 0))))
    return made


def write(predictions: Any, out: Path | None, **options: Any) -> list[str]:
    return list(write_predictions(predictions, out, **options))


def test_a_folder_holds_json_lines_and_csv(predictions: Predictions, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    lines = write(predictions, folder)
    assert lines == [f"2 predictions: {folder / name}" for name in ("predictions.jsonl", "predictions.csv")]
    rows = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [row["labels"] for row in rows] == [["red", 'g,"r']] * 2 and rows[1]["path"] == predictions[1].path
    with (folder / "predictions.csv").open() as stream:
        assert next(csv.DictReader(stream)) == {
            "path": predictions[0].path,
            "label": "red",
            "score": "0.750000",
            "label_2": 'g,"r',
            "score_2": "0.250000",
        }


@pytest.mark.parametrize("name", ["p.csv", "p.jsonl"])
def test_a_single_file_by_its_suffix(name: str, predictions: Predictions, tmp_path: Path) -> None:
    out = tmp_path / "o" / name
    assert write(predictions, out)[0] == f"2 predictions: {out}"
    assert [file.name for file in out.parent.iterdir()] == [name]


def test_drawn_images_of_one_name_are_all_written(predictions: Predictions, tmp_path: Path) -> None:
    in_memory = Prediction(Classification("", ("a",), (1.0,), (0,)), Image.new("RGB", (50, 40)))
    for out in (tmp_path / "o" / "p.csv", tmp_path / "folder"):
        write([*predictions, in_memory], out, draw=True)
        folder = (out.parent if out.suffix else out) / "images"
        assert sorted(file.name for file in folder.iterdir()) == ["image.jpg", "x.jpg", "x_2.jpg"]
    with Image.open(folder / "x.jpg") as image:
        assert image.width >= 320 and image.height > image.width * 40 / 50


def test_predictions_without_a_place_are_json_lines(predictions: Predictions) -> None:
    assert [json.loads(line)["path"] for line in write(predictions, None)] == [p.path for p in predictions]
    with pytest.raises(ConfigError, match="draw"):
        write(predictions, None, draw=True)


def test_a_file_appears_when_it_is_complete(predictions: Predictions, tmp_path: Path) -> None:
    def broken() -> Iterator[Prediction[Classification]]:
        yield predictions[0]
        raise RuntimeError("a bad image")

    for name in ("p.jsonl", "p.csv"):
        with pytest.raises(RuntimeError):
            write(broken(), tmp_path / name)
    assert not list(tmp_path.glob("*p.*"))


@pytest.mark.parametrize("out", ["a/x.png/p.csv", "a/x.png/folder"])
def test_a_place_that_cannot_be_written_is_named(out: str, predictions: Predictions, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"x\.png"):
        write(predictions, tmp_path / out)


def test_bars_are_as_long_as_scores_and_long_names_are_cut() -> None:
    image = Image.new("RGB", (400, 300))
    canvas = draw_bars(image, Classification("", ("w" * 200, "b"), (0.5, 0.0), (0, 1)).bars())
    assert canvas.size[0] == 400
    row = [canvas.getpixel((x, 311)) for x in range(400)]
    blue = [x for x, pixel in enumerate(row) if pixel == (64, 140, 255)]
    assert blue[0] < 12 and 195 <= blue[-1] <= 205
