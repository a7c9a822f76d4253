import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer.errors import ConfigError, OutputError
from metaformer.tasks.outputs import Prediction
from metaformer.tasks.segmentation.results import Segmentation
from metaformer.tasks.segmentation.write import mask_image, write_segmentations
from metaformer.training.diagnose import Outputs


def test_label_maps_and_lines_are_written(seen: Callable[..., Prediction], tmp_path: Path) -> None:
    found = [seen("a/x.jpg"), seen("b/x.png"), seen("clip.gif", frame=7)]
    told = list(write_segmentations(found, tmp_path / "out"))
    assert told == [f"3 label maps: {tmp_path / 'out' / 'masks'}"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert [line["mask"] for line in lines] == ["masks/x.png", "masks/x_2.png", "masks/clip_000007.png"]
    assert lines[1]["path"] == found[1].result.path and lines[2]["frame"] == 7
    assert list(lines[0]["classes"].values()) == pytest.approx([1 / 3] * 3)
    with Image.open(tmp_path / "out" / "masks" / "x_2.png") as image:
        assert image.mode == "P" and np.asarray(image)[0].tolist() == [0] * 4 + [1] * 4 + [2] * 4
        assert np.asarray(image.convert("RGB"))[0, 5].tolist() == [200, 40, 40]


def test_everything_at_once(seen: Callable[..., Prediction], tmp_path: Path) -> None:
    outputs = Outputs(images=True, panoptic=True, rle=True, submission="ade20k", fps=10)
    told = list(write_segmentations([seen("x.jpg"), seen("y.jpg")], tmp_path / "out", outputs))
    assert len(told) == 5 and all(line.startswith("2 ") for line in told)
    names = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*.*")}
    assert names == {
        "predictions.jsonl", "masks/x.png", "masks/y.png", "images/x.jpg", "images/y.jpg",
        "images/animation.webp", "panoptic.json", "panoptic/x.png", "panoptic/y.png", "rle.json",
        "submission_ade20k.zip",
    }  # fmt: skip


def test_without_a_place_lines_are_printed(seen: Callable[..., Prediction]) -> None:
    (line,) = write_segmentations([seen()], None)
    assert json.loads(line)["classes"] == pytest.approx({"sky": 1 / 3, "é, b": 1 / 3, "<i>": 1 / 3})
    assert "é" in line


def test_many_classes_are_16_bit_gray() -> None:
    result = Segmentation("", np.array([[299, 0]], np.uint16), ("a",) * 300, ((0, 0, 0),) * 300)
    assert np.asarray(mask_image(result)).tolist() == [[299, 0]]
    assert mask_image(result).mode == "I;16"


@pytest.mark.parametrize(
    ("out", "outputs", "told"),
    [
        (None, Outputs(images=True), "need a place"),
        ("found.csv", Outputs(), "need a folder"),
        ("out", Outputs(fps=5), "fps: joins drawn images"),
        ("out", Outputs(images=True, fps=0), "fps is 0: .* above 0"),
    ],
)
def test_what_cannot_be_is_told_before_the_work(
    out: str | None, outputs: Outputs, told: str, tmp_path: Path
) -> None:
    def work() -> Iterator[Prediction]:
        raise AssertionError("worked in vain")
        yield

    with pytest.raises(ConfigError, match=told):
        list(write_segmentations(work(), None if out is None else tmp_path / out, outputs))
    assert not list(tmp_path.iterdir())


def test_a_bad_place_is_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OutputError, match="cannot write"):
        list(write_segmentations(iter(()), tmp_path / "file" / "out"))
    assert (tmp_path / "file").read_text() == "kept"


def test_an_error_leaves_no_half_of_what_is_written_of_many(
    seen: Callable[..., Prediction], tmp_path: Path
) -> None:
    def broken() -> Iterator[Prediction]:
        yield seen("x.jpg")
        raise RuntimeError("a bad image")

    outputs = Outputs(panoptic=True, rle=True, submission="ade20k")
    with pytest.raises(RuntimeError):
        list(write_segmentations(broken(), tmp_path / "out", outputs))
    files = {file.name for file in (tmp_path / "out").rglob("*") if file.is_file()}
    assert files == {"x.png"}  # whole ones of the image that was done


def test_images_are_not_written_over(seen: Callable[..., Prediction], tmp_path: Path) -> None:
    inside = seen("masks/x.png")
    before = Path(inside.result.path).read_bytes()
    with pytest.raises(OutputError, match=r"masks/x\.png: lies where results are written to"):
        list(write_segmentations([inside], tmp_path / "photos"))
    assert Path(inside.result.path).read_bytes() == before
