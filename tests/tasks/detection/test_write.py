"""Drawing and writing of detected objects."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.mask import area
from torch import nn

from metaformer.data.rle import encode
from metaformer.errors import ConfigError, DataError
from metaformer.tasks.base import LoadedModel
from metaformer.tasks.detection.draw import MIN_WIDTH, Shape, brighten, draw_objects, draw_shapes
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


def test_drawings_show_one_box_an_object(detected: Spotted, tmp_path: Path) -> None:
    """Lines keep the second class of a box; an image shows it on request."""
    one = detected("x.jpg", masks=False)
    first = one.result.boxes[0]
    both = replace(one.result, boxes=np.stack([first, first]))
    single = both.filtered(0.8)
    assert len(both) == 2 and len(single) == 1
    for name, result, draw_all in (("both", both, False), ("one", single, False), ("all", both, True)):
        found = [one._replace(result=result)]
        list(write_detections(found, tmp_path / name, MODEL, draw=True, draw_all=draw_all))
    pictures = {name: (tmp_path / name / "images" / "x.jpg").read_bytes() for name in ("both", "one", "all")}
    assert pictures["both"] == pictures["one"] != pictures["all"]
    assert [len(line["objects"]) for line in lines_of(tmp_path / "both")] == [2]  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="draw_all"):
        list(write_detections([one], tmp_path / "no", MODEL, draw_all=True))


def test_image_ids_of_a_test_split_come_from_its_file(detected: Spotted, tmp_path: Path) -> None:
    file, found = (
        tmp_path / "image_info_test.json",
        [detected("a/x.jpg"), detected("b/x.jpg"), detected("7.jpg")],
    )
    images = [(90, "a/x.jpg"), (91, "b\\x.jpg"), (12, "7.jpg"), (13, "never.jpg")]
    file.write_text(json.dumps({"images": [{"id": number, "file_name": name} for number, name in images]}))
    list(write_detections(found, tmp_path / "out", MODEL, coco=True, image_ids=file))
    assert [line["image_id"] for line in lines_of(tmp_path / "out")] == [90, 91, 12]
    rows = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert [row["image_id"] for row in rows] == [90, 90, 91, 91, 12, 12]
    for place, name in (("1", "c/x.jpg"), ("2", "new.jpg")):
        with pytest.raises(DataError, match=rf"{name}: the file of image ids has (2|no) such image"):
            list(write_detections([detected(name)], tmp_path / place, MODEL, coco=True, image_ids=file))
    with pytest.raises(ConfigError, match="coco"):
        list(write_detections(found, tmp_path / "3", MODEL, image_ids=file))
    for text in ("[]", "{", '{"images": []}', '{"images": [{"id": "1", "file_name": "a"}]}'):
        file.write_text(text)
        with pytest.raises(DataError, match="image_info_test"):
            list(write_detections(found, tmp_path / "4", MODEL, coco=True, image_ids=file))


def test_frames_become_an_animation(detected: Spotted, tmp_path: Path) -> None:
    found = [detected("clip.gif", frame=number, milliseconds=40) for number in range(3)]
    list(write_detections(found, tmp_path / "out", draw=True))
    assert (tmp_path / "out" / "images" / "clip.webp").is_file()


def test_without_a_place_lines_are_printed(detected: Spotted) -> None:
    (line,) = write_detections([detected()], None)
    assert len(json.loads(line)["objects"]) == 2 and "é" in line


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


RED, BLUE = (200, 40, 40), (40, 40, 200)


def near(pixel: np.ndarray, color: tuple[int, int, int]) -> bool:
    return int(np.abs(pixel.astype(int) - color).max()) <= 3


def test_masks_are_blended_and_boxes_drawn(detected: Callable[..., Prediction]) -> None:
    prediction = detected(size=(600, 450))
    pixels = np.asarray(draw_objects(prediction.image, prediction.result))
    assert pixels.shape == (450, 600, 3)
    left, top, _right, bottom = (int(side) for side in prediction.result.boxes[1])
    red = brighten(RED)
    assert near(pixels[(top + bottom) // 2 + 60, left], red)  # the box
    inside = pixels[top + 60, left + 60]
    assert near(inside, tuple(round(55 + 0.45 * part) for part in red))  # type: ignore[arg-type]
    assert near(pixels[bottom - 20, left + 60], (100, 100, 100))  # beside the mask
    assert near(pixels[5, 300], (100, 100, 100))
    assert (pixels[top - 12 : top, left : left + 60] == red).all(axis=2).mean() > 0.4  # the name's ground


def test_boxes_alone(detected: Callable[..., Prediction]) -> None:
    prediction = detected(size=(600, 450), masks=False)
    pixels = np.asarray(draw_objects(prediction.image, prediction.result))
    left, top, *_ = (int(side) for side in prediction.result.boxes[0])
    assert near(pixels[top + 60, left + 60], (100, 100, 100)) and near(pixels[top + 60, left], brighten(BLUE))


def test_small_images_are_enlarged(detected: Callable[..., Prediction]) -> None:
    prediction = detected(size=(100, 80))
    image = draw_objects(prediction.image, prediction.result)
    assert image.size == (400, 320) and image.width >= MIN_WIDTH
    pixels = np.asarray(image)
    left, top, _, bottom = (4 * int(side) for side in prediction.result.boxes[0])
    assert near(pixels[bottom - 20, left], brighten(BLUE))
    assert near(pixels[top + 40, left + 40], tuple(round(55 + 0.45 * p) for p in brighten(BLUE)))  # type: ignore[arg-type]


def test_masks_of_another_size_are_stretched() -> None:
    mask = np.zeros((30, 40), bool)
    mask[10:20, 10:20] = True
    image = draw_shapes(Image.new("RGB", (800, 600)), [Shape((200, 200, 400, 400), "", RED, encode(mask))])
    pixels = np.asarray(image)
    assert near(pixels[300, 300], tuple(round(0.45 * part) for part in brighten(RED)))  # type: ignore[arg-type]
    assert not pixels[450, 300].any() and not pixels[300, 450].any()


@pytest.mark.parametrize("ground", [0, 24, 60, 128, 200, 255])
@pytest.mark.parametrize("color", [(0, 0, 0), (0, 0, 142), RED, (255, 255, 255), (128, 128, 128)])
def test_boxes_show_on_dark_and_bright_images(ground: int, color: tuple[int, int, int]) -> None:
    image = Image.new("RGB", (400, 400), (ground,) * 3)
    across = np.asarray(draw_shapes(image, [Shape((100, 100, 300, 300), "", color)]).convert("L"))[
        200, 90:120
    ]
    assert np.abs(across.astype(int) - ground).max() >= 100


def test_the_first_lies_on_top() -> None:
    shapes = [Shape((100, 100, 300, 300), "", RED), Shape((100, 100, 300, 300), "", BLUE)]
    assert near(np.asarray(draw_shapes(Image.new("RGB", (400, 400)), shapes))[200, 100], brighten(RED))


def test_names_do_not_hide_each_other() -> None:
    boxes = [(100, 100, 300, 300), (100, 102, 300, 298), (98, 100, 300, 300)]
    colors = [RED, BLUE, (40, 200, 40)]
    shapes = [Shape(box, "a name", color) for box, color in zip(boxes, colors, strict=True)]
    pixels = np.asarray(draw_shapes(Image.new("RGB", (400, 400)), shapes))
    for color in colors:
        alone = np.asarray(
            draw_shapes(Image.new("RGB", (400, 400)), [Shape((100, 100, 300, 300), "a name", color)])
        )
        visible = [int((image == brighten(color)).all(axis=2)[:, 105:150].sum()) for image in (pixels, alone)]
        assert visible[0] > 0.6 * visible[1]


@given(
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.lists(st.lists(st.floats(-20, 120), min_size=4, max_size=4), max_size=4),
    st.sampled_from(["", "a", "a very long name that does not fit anywhere 0.99"]),
)
@settings(max_examples=60, deadline=None)
def test_any_boxes_on_any_image(size: tuple[int, int], corners: list[list[float]], text: str) -> None:
    shapes = []
    for one in corners:
        (left, right), (top, bottom) = sorted(one[::2]), sorted(one[1::2])
        shapes.append(Shape((left, top, right, bottom), text, RED, encode(np.ones(size[::-1], bool))))
    assert draw_shapes(Image.new("L", size), shapes, width=100).mode == "RGB"


@pytest.mark.parametrize("color", [(0, 0, 0), (64, 0, 0), (0, 0, 142), (255, 255, 255)])
def test_dark_colors_are_brightened(color: tuple[int, int, int]) -> None:
    assert max(brighten(color)) >= 127 and (np.argsort(brighten(color)) == np.argsort(color)).all()


def test_thousands_of_objects_are_drawn_in_time() -> None:
    shapes = [Shape((k % 90, k // 90, k % 90 + 9, k // 90 + 9), "a", (0, 0, 200), None) for k in range(3000)]
    before = time.process_time()
    draw_shapes(Image.new("RGB", (100, 100)), shapes)
    assert time.process_time() - before < 10  # 20 s and more if places are compared one by one
