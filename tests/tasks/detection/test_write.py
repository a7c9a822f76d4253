import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.mask import area
from torch import nn

from metaformer.errors import ConfigError, OutputError
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.detection.results import DetectedObjects
from metaformer.tasks.detection.spec import SPEC, DetectionMetadata
from metaformer.tasks.detection.write import write_detections
from metaformer.tasks.outputs import Prediction

Spotted = Callable[..., Prediction[DetectedObjects]]


MODEL = LoadedModel(SPEC, "net", nn.Identity(), None, metadata=DetectionMetadata((), (3, 90)))
"""A network whose classes have these category ids."""


def lines_of(place: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (place / "predictions.jsonl").read_text().splitlines()]


def test_lines_are_written(detected: Spotted, tmp_path: Path) -> None:
    found, place = [detected("a/x.jpg"), detected("clip.gif", frame=7)], tmp_path / "out"
    assert list(write_detections(found, place)) == [f"2 images: {place / 'predictions.jsonl'}"]
    lines = lines_of(place)
    assert lines[0]["path"] == found[0].path and lines[1]["frame"] == 7
    assert lines[0]["objects"] == [
        {"label": 1, "name": "<i>", "score": 0.875, "box": [40, 60, 160, 240]},
        {"label": 0, "name": "é, b", "score": 0.5, "box": [240, 60, 360, 240]},
    ]
    assert {file.name for file in place.iterdir()} == {"predictions.jsonl"}


def test_all_outputs_together(detected: Spotted, tmp_path: Path) -> None:
    place = tmp_path / "out"
    found = [detected("7.jpg"), detected("y.jpg", masks=False)]
    lines = list(write_detections(found, place, MODEL, draw=True, coco=True, fps=10))
    assert len(lines) == 3 and all(line.startswith("2 ") for line in lines)
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


def test_frames_become_an_animation(detected: Spotted, tmp_path: Path) -> None:
    found = [detected("clip.gif", frame=number, milliseconds=40) for number in range(3)]
    list(write_detections(found, tmp_path / "out", draw=True))
    assert (tmp_path / "out" / "images" / "clip.webp").is_file()


def test_without_a_place_lines_are_printed(detected: Spotted) -> None:
    (line,) = write_detections([detected()], None)
    assert len(json.loads(line)["objects"]) == 2 and "é" in line


@pytest.mark.parametrize(
    ("out", "options", "named"),
    [
        (None, {"coco": True}, "coco"),
        (None, {"draw": True}, "draw"),
        ("found.jsonl", {}, r"found\.jsonl"),
        ("out", {"fps": 5}, "fps"),
        ("out", {"draw": True, "fps": 0}, r"fps\b.*0"),
    ],
)
def test_wrong_options_are_named_before_the_work(
    out: str | None, options: dict[str, Any], named: str, tmp_path: Path
) -> None:
    def work() -> Iterator[Prediction[DetectedObjects]]:
        raise AssertionError("worked in vain")
        yield

    with pytest.raises(ConfigError, match=named):
        list(write_detections(work(), None if out is None else tmp_path / out, **options))
    assert not list(tmp_path.iterdir())


def test_images_are_not_overwritten(detected: Spotted, tmp_path: Path) -> None:
    inside = detected("images/x.jpg")
    before = Path(inside.path).read_bytes()
    with pytest.raises(OutputError, match=r"images/x\.jpg"):
        list(write_detections([inside], tmp_path / "photos", draw=True))
    assert Path(inside.path).read_bytes() == before


def test_pycocotools_reads_the_results(detected: Spotted, tmp_path: Path) -> None:
    found = [detected("000000000139.jpg"), detected("holiday.jpg")]
    list(write_detections(found, tmp_path / "out", MODEL, coco=True))
    file = tmp_path / "out" / "coco.json"
    rows = json.loads(file.read_text())
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(139, 90), (139, 3), (2, 90), (2, 3)]
    truth = COCO()
    truth.dataset = {
        "images": [{"id": own, "width": 400, "height": 300} for own in (139, 2)],
        "annotations": [],
        "categories": [{"id": own, "name": str(own)} for own in (3, 90)],
    }
    truth.createIndex()
    results = truth.loadRes(str(file))
    assert area([results.anns[1]["segmentation"]]).tolist() == [120 * 90]
    assert rows[0]["bbox"] == [40, 60, 120, 180] and rows[0]["score"] == 0.875


def test_no_objects_are_an_empty_list(tmp_path: Path) -> None:
    list(write_detections([], tmp_path / "out", coco=True))
    assert json.loads((tmp_path / "out" / "coco.json").read_text()) == []


def test_files_of_many_images_appear_when_they_are_complete(detected: Spotted, tmp_path: Path) -> None:
    def broken() -> Iterator[Prediction[DetectedObjects]]:
        yield detected()
        raise RuntimeError("a bad image")

    with pytest.raises(RuntimeError):
        list(write_detections(broken(), tmp_path / "out", coco=True, draw=True))
    files = [file.name for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert files == ["x.jpg"]
