import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from metaformer.errors import ConfigError, OutputError
from metaformer.tasks.detection.write import DetectOutputs, write_detections
from metaformer.tasks.outputs import Prediction


def lines_of(place: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (place / "predictions.jsonl").read_text().splitlines()]


def test_lines_are_written(spotted: Callable[..., Prediction], tmp_path: Path) -> None:
    found = [spotted("a/x.jpg"), spotted("clip.gif", frame=7)]
    told = list(write_detections(found, tmp_path / "out"))
    assert told == [f"2 images: {tmp_path / 'out' / 'predictions.jsonl'}"]
    lines = lines_of(tmp_path / "out")
    assert lines[0]["path"] == found[0].result.path and lines[1]["frame"] == 7
    assert lines[0]["objects"] == [
        {"label": 1, "name": "<i>", "score": 0.875, "box": [40, 60, 160, 240]},
        {"label": 0, "name": "é, b", "score": 0.5, "box": [240, 60, 360, 240]},
    ]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"predictions.jsonl"}


def test_everything_at_once(spotted: Callable[..., Prediction], tmp_path: Path) -> None:
    place = tmp_path / "out"
    found = [spotted("7.jpg"), spotted("y.jpg", masks=False)]
    told = list(write_detections(found, place, DetectOutputs(images=True, coco=True, fps=10), (3, 90)))
    assert len(told) == 3 and all(line.startswith("2 ") for line in told)
    assert {str(file.relative_to(place)) for file in place.rglob("*.*")} == {
        "predictions.jsonl", "coco.json", "images/7.jpg", "images/y.jpg", "images/animation.webp",
    }  # fmt: skip
    rows = json.loads((place / "coco.json").read_text())
    assert (
        [line["image_id"] for line in lines_of(place)] == [rows[0]["image_id"], rows[2]["image_id"]] == [7, 2]
    )
    assert rows[0]["category_id"] == 90 and "segmentation" in rows[0] and "segmentation" not in rows[2]
    with Image.open(place / "images" / "7.jpg") as image:
        assert image.size == (400, 300)


def test_frames_become_an_animation(spotted: Callable[..., Prediction], tmp_path: Path) -> None:
    found = [spotted("clip.gif", frame=number, milliseconds=40) for number in range(3)]
    list(write_detections(found, tmp_path / "out", DetectOutputs(images=True)))
    assert (tmp_path / "out" / "images" / "clip.webp").is_file()


def test_without_a_place_lines_are_printed(spotted: Callable[..., Prediction]) -> None:
    (line,) = write_detections([spotted()], None)
    assert len(json.loads(line)["objects"]) == 2 and "é" in line


@pytest.mark.parametrize(
    ("out", "outputs", "told"),
    [
        (None, DetectOutputs(coco=True), "need a place"),
        ("found.jsonl", DetectOutputs(), "a folder"),
        ("out", DetectOutputs(fps=5), "fps: joins drawn images"),
    ],
)
def test_what_cannot_be_is_told_before_the_work(
    out: str | None, outputs: DetectOutputs, told: str, tmp_path: Path
) -> None:
    def work() -> Iterator[Prediction]:
        raise AssertionError("worked in vain")
        yield

    with pytest.raises(ConfigError, match=told):
        list(write_detections(work(), None if out is None else tmp_path / out, outputs))
    assert not list(tmp_path.iterdir())


def test_images_are_not_written_over(spotted: Callable[..., Prediction], tmp_path: Path) -> None:
    inside = spotted("images/x.jpg")
    before = Path(inside.result.path).read_bytes()
    with pytest.raises(OutputError, match="lies where results are written to"):
        list(write_detections([inside], tmp_path / "photos", DetectOutputs(images=True)))
    assert Path(inside.result.path).read_bytes() == before
