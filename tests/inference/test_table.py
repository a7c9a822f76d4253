"""Batches of tables, as Ray Data, Hugging Face's data sets and Spark hand them over."""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from metaformer import Predictor, create_detector, create_model, create_segmenter
from metaformer.errors import BadImage, DataError
from metaformer.weights.hub import save_pretrained
from toys import TINY


def save(model: Any, place: Path) -> Path:
    save_pretrained(model, place)
    return place


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor[Any]:
    torch.manual_seed(0)
    place = save(create_model("poolformer_n", num_classes=3, **TINY), tmp_path_factory.mktemp("model"))
    return Predictor(place, class_names=["ant", "bee", "cat"], image_size=32, device="cpu", batch_size=2)


@pytest.fixture(scope="module")
def files(pets: Path) -> list[str]:
    return [str(file) for file in sorted((pets / "val").rglob("*.png"))][:5]


@pytest.fixture(scope="module")
def expected(predictor: Predictor[Any], files: list[str]) -> dict[str, list[Any]]:
    """Columns of the results of the files."""
    rows = [result.to_dict() for result in predictor(files)]
    return {name: [row[name] for row in rows] for name in rows[0] if name != "path"}


def assert_same(found: Any, expected: dict[str, list[Any]]) -> None:
    assert [list(row) for row in found["labels"]] == [list(row) for row in expected["labels"]]
    assert [list(row) for row in found["indices"]] == [list(row) for row in expected["indices"]]
    assert np.allclose(np.array(list(found["scores"])), np.array(expected["scores"]))


def pixels(file: str) -> NDArray[np.uint8]:
    with Image.open(file) as image:
        return np.array(image)


def test_columns_come_back_with_those_of_results(
    predictor: Predictor[Any], files: list[str], expected: dict[str, list[Any]]
) -> None:
    ids = np.arange(len(files))
    images = [
        Image.open(files[0]),
        pixels(files[1]),
        Path(files[2]).read_bytes(),
        files[3],
        {"path": files[4]},
    ]
    found = predictor({"id": ids, "image": images})
    assert list(found) == ["id", *expected] and found["id"] is ids
    assert_same(found, expected)
    found = predictor({"path": np.array(files), "n": list(ids)})
    assert list(found["path"]) == files and list(found) == ["path", "n", *expected]
    assert_same(found, expected)
    found = predictor({"path": files, "bytes": [Path(file).read_bytes() for file in files]})
    assert list(found) == ["path", *expected] and found["path"] == files
    assert_same(found, expected)


def test_an_array_of_images(predictor: Predictor[Any]) -> None:
    images = np.random.RandomState(0).randint(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    found = predictor({"image": images})
    assert found["labels"] == [list(result.labels) for result in predictor(list(images))]


def test_what_is_no_batch_of_images(predictor: Predictor[Any], files: list[str]) -> None:
    with pytest.raises(
        DataError, match="columns are id, x: images are looked for in image, bytes, content and path"
    ):
        predictor({"id": [1], "x": files[:1]})
    with pytest.raises(DataError, match="column labels is there already"):
        predictor({"labels": [1], "path": files[:1]})
    with pytest.raises(DataError, match="row 1: int is no image"):
        predictor({"image": [files[0], 1]})
    with pytest.raises(BadImage, match="row 0"):
        predictor({"bytes": [b"no image"]})


def test_rows_of_bad_images_are_left_out(predictor: Predictor[Any], files: list[str], tmp_path: Path) -> None:
    place = save(predictor.model.model, tmp_path)
    skipping = Predictor(place, image_size=32, device="cpu", on_bad_image="skip")
    found = skipping({"id": ["a", "b", "c"], "image": [files[0], b"no image", files[1]]})
    assert found["id"] == ["a", "c"] and len(found["labels"]) == 2
    assert [str(error.path) for error in skipping.skipped] == ["row 1"]


def test_data_sets_of_hugging_face(
    predictor: Predictor[Any], files: list[str], expected: dict[str, list[Any]], tmp_path: Path
) -> None:
    data = datasets.Dataset.from_dict({"image": files, "id": range(len(files))})
    data = data.cast_column("image", datasets.Image())
    found = data.map(predictor, batched=True, batch_size=2, remove_columns="image")
    assert found.column_names == ["id", *expected] and found["id"][:] == list(range(len(files)))
    assert_same(found[:], expected)


def test_frames_of_pandas(
    predictor: Predictor[Any], files: list[str], expected: dict[str, list[Any]]
) -> None:
    """Spark's `mapInPandas` takes a function of an iterator of these."""
    frame = pandas.DataFrame({"path": files, "content": [Path(file).read_bytes() for file in files]})
    found = pandas.DataFrame(predictor(frame.to_dict("list")))
    assert list(found.columns) == ["path", *expected] and list(found["path"]) == files
    assert_same(found, expected)


def test_other_tasks(files: list[str], tmp_path: Path) -> None:
    """Fields are of one type in all rows."""
    backbone = create_model("poolformer_n", **TINY).config
    small: dict[str, Any] = {"fpn_dim": 16, "head_dim": 16}
    segmenter = save(create_segmenter("semantic_fpn", backbone, 3, **small), tmp_path / "segment")
    found = Predictor(segmenter, device="cpu")({"path": files[:2]})
    assert list(found) == ["path", "width", "height", "classes"]
    shares = [sum(one["value"] for one in row) for row in found["classes"]]
    assert shares == pytest.approx([1, 1]) and {"name", "value"} == set(found["classes"][0][0])
    detector = save(create_detector("retinanet", backbone, 3, fpn_dim=16), tmp_path / "detect")
    found = Predictor(detector, device="cpu")({"path": files[:2]})
    assert list(found) == ["path", "width", "height", "objects"] and len(found["objects"]) == 2
