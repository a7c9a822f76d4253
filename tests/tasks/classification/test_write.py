import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from metaformer.errors import ConfigError, OutputError
from metaformer.tasks.classification.draw import annotate
from metaformer.tasks.classification.results import Classification
from metaformer.tasks.classification.write import write_csv, write_images, write_jsonl, write_predictions


@pytest.fixture
def results(tmp_path: Path) -> list[Classification]:
    found = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (50, 40), (200, 30, 30)).save(tmp_path / folder / "x.png")
        found.append(Classification(str(tmp_path / folder / "x.png"), ("red", 'g,"r'), (0.75, 0.25), (1, 0)))
    return found


def test_json_lines(results: list[Classification], tmp_path: Path) -> None:
    lines = write_jsonl(results, tmp_path / "new" / "p.jsonl").read_text().splitlines()
    assert [json.loads(line)["labels"] for line in lines] == [["red", 'g,"r']] * 2
    assert json.loads(lines[1])["path"] == results[1].path


def test_csv_quotes_what_needs_it(results: list[Classification], tmp_path: Path) -> None:
    with write_csv(results, tmp_path / "p.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0] == {
        "path": results[0].path,
        "label": "red",
        "score": "0.750000",
        "label_2": 'g,"r',
        "score_2": "0.250000",
    }


def test_a_file_appears_only_when_it_is_whole(results: list[Classification], tmp_path: Path) -> None:
    def broken() -> Iterator[Classification]:
        yield results[0]
        raise RuntimeError("a bad image")

    with pytest.raises(RuntimeError):
        write_jsonl(broken(), tmp_path / "p.jsonl")
    assert not list(tmp_path.glob("*p.jsonl*"))


def test_a_place_that_cannot_be_written_is_told(results: list[Classification], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        write_csv(results, tmp_path / "a" / "x.png" / "p.csv")


def test_annotated_images_keep_every_result(results: list[Classification], tmp_path: Path) -> None:
    files = write_images(results, tmp_path / "out")
    assert [file.name for file in files] == ["x.jpg", "x_2.jpg"]
    with Image.open(files[0]) as image:
        assert image.width >= 320 and image.height > image.width * 40 / 50
    with pytest.raises(ConfigError, match="has no file"):
        write_images([Classification("", ("a",), (1.0,), (0,))], tmp_path / "out")


def test_the_bar_is_as_long_as_the_score_and_long_names_are_cut() -> None:
    image = Image.new("RGB", (400, 300))
    canvas = annotate(image, Classification("", ("w" * 200, "b"), (0.5, 0.0), (0, 1)))
    assert canvas.size[0] == 400
    row = [canvas.getpixel((x, 311)) for x in range(400)]
    blue = [x for x, pixel in enumerate(row) if pixel == (64, 140, 255)]
    assert blue[0] < 12 and 195 <= blue[-1] <= 205


def test_out_says_where_and_as_what(results: list[Classification], tmp_path: Path) -> None:
    assert [json.loads(line)["path"] for line in write_predictions(results, None)] == [
        r.path for r in results
    ]
    lone = list(write_predictions(results, tmp_path / "o" / "p.csv", images=True))
    assert (tmp_path / "o" / "p.csv").is_file() and len(list((tmp_path / "o" / "images").iterdir())) == 2
    assert lone[0] == f"2 predictions: {tmp_path / 'o' / 'p.csv'}"
    list(write_predictions(results, tmp_path / "folder"))
    assert {file.name for file in (tmp_path / "folder").iterdir()} == {"predictions.jsonl", "predictions.csv"}
    with pytest.raises(ConfigError, match="need a place"):
        list(write_predictions(results, None, images=True))


def test_a_bad_place_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")

    def work() -> Iterator[Classification]:
        raise AssertionError("worked in vain")
        yield

    for out in ("file/x.csv", "file/folder"):
        with pytest.raises(OutputError, match="cannot write"):
            list(write_predictions(work(), tmp_path / out))
    assert (tmp_path / "file").read_text() == "kept"
