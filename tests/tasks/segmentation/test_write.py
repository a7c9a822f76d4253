import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metaformer.errors import ConfigError, OutputError
from metaformer.tasks.outputs import Prediction
from metaformer.tasks.segmentation.results import Segmentation
from metaformer.tasks.segmentation.write import (
    Segment,
    ade20k_writer,
    coco_file,
    find_segments,
    mask_image,
    panoptic_image,
    panoptic_writer,
    rle_writer,
    submission_image,
    write_segmentations,
)

Make = Callable[..., Prediction]


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def result(label_map: list[list[int]], classes: int) -> Segmentation:
    kind = np.uint8 if classes <= 256 else np.uint16
    names = tuple(map(str, range(classes)))
    return Segmentation("", np.array(label_map, kind), names, ((1, 2, 3),) * classes)


def test_label_maps_and_json_lines(segmented: Make, tmp_path: Path) -> None:
    predictions = [segmented("a/x.jpg"), segmented("b/x.png"), segmented("clip.gif", frame=7)]
    printed = list(write_segmentations(predictions, tmp_path / "out"))
    assert printed == [f"3 label maps: {tmp_path / 'out' / 'masks'}"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["mask"] for line in lines] == ["masks/x.png", "masks/x_2.png", "masks/clip_000007.png"]
    assert lines[1]["path"] == predictions[1].result.path and lines[2]["frame"] == 7
    assert list(lines[0]["classes"].values()) == pytest.approx([1 / 3] * 3)
    with Image.open(tmp_path / "out" / "masks" / "x_2.png") as image:
        assert image.mode == "P" and np.asarray(image)[0].tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert np.asarray(image.convert("RGB"))[0, 5].tolist() == [200, 40, 40]


def test_all_outputs_at_once(segmented: Make, tmp_path: Path) -> None:
    out, options = tmp_path / "out", {"draw": True, "panoptic": True, "rle": True, "fps": 10}
    predictions = [segmented("x.jpg"), segmented("y.jpg")]
    printed = list(write_segmentations(predictions, out, submission="ade20k", **options))  # type: ignore[arg-type]
    assert len(printed) == 5 and all(line.startswith("2 ") for line in printed)
    assert {str(file.relative_to(out)) for file in out.rglob("*.*")} == {
        "predictions.jsonl", "masks/x.png", "masks/y.png", "images/x.jpg", "images/y.jpg",
        "images/animation.webp", "panoptic.json", "panoptic/x.png", "panoptic/y.png", "rle.json",
        "submission_ade20k.zip",
    }  # fmt: skip


def test_without_a_place_lines_are_yielded(segmented: Make) -> None:
    (line,) = write_segmentations([segmented()], None)
    assert json.loads(line)["classes"] == pytest.approx({"sky": 1 / 3, "é, b": 1 / 3, "<i>": 1 / 3})
    assert "é" in line


def test_an_error_leaves_only_complete_files(segmented: Make, tmp_path: Path) -> None:
    def broken() -> Iterator[Prediction]:
        yield segmented("x.jpg")
        raise RuntimeError("a bad image")

    with pytest.raises(RuntimeError):
        list(write_segmentations(broken(), tmp_path / "out", panoptic=True, rle=True, submission="ade20k"))
    files = {file.name for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert files == {"x.png"}


def test_images_are_not_overwritten(segmented: Make, tmp_path: Path) -> None:
    inside = segmented("masks/x.png")
    before = Path(inside.path).read_bytes()
    with pytest.raises(OutputError, match=r"masks/x\.png: lies in the folder"):
        list(write_segmentations([inside], tmp_path / "photos"))
    assert Path(inside.path).read_bytes() == before


def test_many_classes_are_16_bit_gray() -> None:
    image = mask_image(result([[299, 0]], 300))
    assert image.mode == "I;16" and np.asarray(image).tolist() == [[299, 0]]


def test_ade20k_submission(segmented: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "out" / "submission_ade20k.zip"
    with ade20k_writer(file.parent) as write:
        for number in (1, 2):
            write("another", segmented(f"ADE_test_{number:08d}.jpg"))
        assert not file.exists()
    with zipfile.ZipFile(file) as archive:
        assert caplog.messages == ["submission: the benchmark has 150 classes, not 3"]
        assert archive.namelist() == ["ADE_test_00000001.png", "ADE_test_00000002.png"]
        with Image.open(io.BytesIO(archive.read("ADE_test_00000002.png"))) as image:
            assert image.mode == "L" and image.size == (12, 8)
            assert np.asarray(image)[3].tolist() == [1] * 4 + [2] * 4 + [3] * 4


def test_ade20k_submission_needs_unique_file_names(segmented: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"submission: .*x\.png"), ade20k_writer(tmp_path / "out") as write:
        write("x", segmented("a/x.jpg"))
        write("x_2", segmented("b/x.jpg"))
    assert not (tmp_path / "out").exists()
    for one in (segmented(frame=0), segmented()._replace(result=result([[0]], 1))):
        with pytest.raises(ConfigError, match="submission"), ade20k_writer(tmp_path / "out") as write:
            write("x", one)


def test_ade20k_submission_holds_150_classes() -> None:
    assert np.asarray(submission_image(result([[0, 149]], 150))).tolist() == [[1, 150]]
    with pytest.raises(ConfigError, match="150 classes, the network 151"):
        submission_image(result([[0]], 151))


def test_coco_ids_are_file_names_or_free_numbers(segmented: Make, tmp_path: Path) -> None:
    names = ["x", "000000000002", "y", "2", "0"]
    with coco_file(tmp_path / "f.json") as file:
        ids = [file.add_image(name, segmented(f"{name}.jpg")) for name in names]
        file.add({"image_id": number} for number in ids[:2])
        file.add([{"image_id": ids[2]}])
    assert ids == [1, 2, 3, 4, 5]
    document = read_json(tmp_path / "f.json")
    assert [row["image_id"] for row in document["annotations"]] == [1, 2, 3]
    path = segmented("000000000002.jpg").path
    assert document["images"][1] == {"id": 2, "file_name": path, "width": 12, "height": 8}
    assert document["categories"][1] == {
        "id": 2, "name": "é, b", "supercategory": "", "isthing": 0, "color": [200, 40, 40],
    }  # fmt: skip


def test_coco_files_of_frames_and_after_errors(segmented: Make, tmp_path: Path) -> None:
    with pytest.raises(KeyError), coco_file(tmp_path / "f.json") as file:
        file.add_image("x", segmented(frame=3))
        raise KeyError
    assert not list(tmp_path.glob("*f.json"))
    with coco_file(tmp_path / "f.json") as file:
        file.add_image("x", segmented(frame=3))
    document = read_json(tmp_path / "f.json")
    assert document["images"][0]["frame"] == 3 and document["annotations"] == []


def test_panoptic_images_and_segments(segmented: Make, tmp_path: Path) -> None:
    with panoptic_writer(tmp_path / "out") as write:
        write("x", segmented("x.jpg"))
        write("y", segmented("y.jpg", size=(3, 2)))
        assert not (tmp_path / "out" / "panoptic.json").exists()
    document = read_json(tmp_path / "out" / "panoptic.json")
    first = document["annotations"][0]
    assert (first["image_id"], first["file_name"]) == (1, "x.png")
    assert first["segments_info"][2] == {
        "id": 3, "category_id": 3, "area": 32, "bbox": [8, 0, 4, 8], "iscrowd": 0,
    }  # fmt: skip
    assert [row["id"] for row in document["images"]] == [1, 2] and len(document["categories"]) == 3
    colors = np.asarray(Image.open(tmp_path / "out" / "panoptic" / "x.png")).astype(int)
    ids = colors @ [1, 256, 65536]
    assert ids.shape == (8, 12) and ids[0].tolist() == [1] * 4 + [2] * 4 + [3] * 4
    colors = np.asarray(panoptic_image(result([[254, 255, 299]], 300)))
    assert colors[0].tolist() == [[255, 0, 0], [0, 1, 0], [44, 1, 0]]


def test_run_lengths_of_each_class(segmented: Make, tmp_path: Path) -> None:
    with rle_writer(tmp_path) as write:
        write("x", segmented("x.jpg"))
        write("y", segmented("y.jpg"))
    rows = read_json(tmp_path / "rle.json")["annotations"]
    ids = [(row["id"], row["image_id"], row["category_id"]) for row in rows]
    assert ids == [(1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 2, 1), (5, 2, 2), (6, 2, 3)]
    assert rows[1] == {
        "id": 2, "image_id": 1, "category_id": 2, "area": 32, "bbox": [4, 0, 4, 8], "iscrowd": 0,
        "segmentation": {"size": [8, 12], "counts": [32, 32, 32]},
    }  # fmt: skip
    assert rows[0]["segmentation"]["counts"] == [0, 32, 64]
    counts = rows[2]["segmentation"]["counts"]
    mask = np.repeat(np.arange(len(counts)) % 2, counts).reshape(8, 12, order="F")
    assert mask.sum() == 32 and mask[:, 8:].all()


def test_segments_have_areas_and_boxes() -> None:
    label_map = np.zeros((600, 5), np.uint8)
    label_map[590:595, 1:3] = 2
    label_map[300, 4] = 2
    background, object_ = find_segments(label_map, 4)
    assert background == Segment(0, 2989, (0, 0, 5, 600))
    assert object_ == Segment(2, 11, (1, 300, 4, 295))
