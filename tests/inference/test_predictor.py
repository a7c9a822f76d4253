import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from metaformer.errors import BadImage, ConfigError, DataError
from metaformer.factory import create_model
from metaformer.inference.predictor import Predictor
from metaformer.serialize import from_dict
from metaformer.tasks.detection.results import DetectedObjects
from metaformer.tasks.segmentation.results import Segmentation
from metaformer.training.train import train


@pytest.fixture(scope="module")
def run(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that knows the three colors."""
    config = from_dict(
        {
            "model": {"name": "poolformer_n", "overrides": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}},
            "data": {"root": str(pets), "image_size": 32, "batch_size": 6, "workers": 0},
            "augment": {"auto_augment": None, "mixup": 0.0, "cutmix": 0.0, "color_jitter": 0.0, "erase": 0.0},
            "optim": {"lr": 1e-2},
            "schedule": {"epochs": 6, "warmup_epochs": 0, "min_lr": 0.0},
            "runtime": {"device": "cpu", "threads": 1},
        }
    )
    return train(config, tmp_path_factory.mktemp("predict") / "run").run


@pytest.fixture(scope="module")
def segment_run(patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that finds green and blue squares."""
    config = from_dict(
        {
            "task": "segment",
            "model": {"name": "poolformer_n", "overrides": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}},
            "data": {"root": str(patches), "image_size": 32, "batch_size": 6, "workers": 0},
            "augment": {"mixup": 0.0, "cutmix": 0.0, "erase": 0.0},
            "segment": {
                "fpn_dim": 16, "head_dim": 16, "dropout": 0.0, "resize": None, "reduce_zero_label": False,
                "photometric": False, "scale": [1.0, 1.5],
            },
            "optim": {"lr": 1e-2},
            "schedule": {"steps": 40, "warmup_steps": 0, "min_lr": 0.0},
            "evaluate": {"every_steps": 20},
            "runtime": {"device": "cpu", "threads": 1},
        }
    )  # fmt: skip
    return train(config, tmp_path_factory.mktemp("predict") / "segment").run


def test_a_file_a_folder_a_glob_an_image_and_a_list(run: Path, pets: Path) -> None:
    predictor = Predictor(run, device="cpu", batch_size=4)
    folder = predictor(pets / "val")
    assert [result.path for result in folder] == sorted(str(path) for path in (pets / "val").rglob("*.png"))
    assert sum(result.label == Path(result.path).parent.name for result in folder) >= 12
    one = predictor(str(pets / "val" / "bee" / "1.png"))
    assert len(one) == 1 and one[0].label == "bee"
    assert one[0].scores == pytest.approx(next(r for r in folder if r.path == one[0].path).scores, rel=1e-5)
    assert [r.path for r in predictor(f"{pets}/val/*/0.png")] == [
        f"{pets}/val/{c}/0.png" for c in ("ant", "bee", "cat")
    ]
    with Image.open(pets / "val" / "cat" / "2.png") as image:
        image.load()
    both = predictor([image, pets / "val" / "ant" / "0.png"])
    assert [(r.path == "", r.label) for r in both] == [(True, "cat"), (False, "ant")]


def test_results_are_ranked_probabilities(run: Path, pets: Path) -> None:
    result = Predictor(run, device="cpu")(pets / "val" / "ant" / "0.png")[0]
    assert sum(result.scores) == pytest.approx(1.0) and list(result.scores) == sorted(
        result.scores, reverse=True
    )
    assert result.labels == tuple(("ant", "bee", "cat")[i] for i in result.indices)
    assert result.score == result.scores[0]
    assert len(Predictor(run, device="cpu", top_k=2)(pets / "val" / "ant" / "0.png")[0].labels) == 2


def test_workers_flip_and_crops(run: Path, pets: Path) -> None:
    plain, worked = Predictor(run, device="cpu")(pets / "val"), Predictor(run, workers=2)(pets / "val")
    for one, other in zip(plain, worked, strict=True):
        assert one.path == other.path and one.scores == pytest.approx(other.scores, rel=1e-4)
    for options in ({"flip": True}, {"crops": 5}):
        looked = Predictor(run, device="cpu", **options)(pets / "val")  # type: ignore[arg-type]
        assert any(a.scores != pytest.approx(b.scores, rel=1e-4) for a, b in zip(plain, looked, strict=True))


def test_a_model_without_names_numbers_its_classes(pets: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(create_model("poolformer_n").state_dict(), tmp_path / "w.safetensors")
    image = pets / "val" / "ant" / "0.png"
    result = Predictor("poolformer_n", tmp_path / "w.safetensors", image_size=32)(image)[0]
    assert len(result.labels) == 5 and not any(label.isdigit() for label in result.labels)  # ImageNet's words
    named = Predictor(
        "poolformer_n", tmp_path / "w.safetensors", image_size=32, classes=[f"c{i}" for i in range(1000)]
    )
    assert named(image)[0].label == f"c{result.indices[0]}"


def test_a_broken_image_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no image")
    with pytest.raises(BadImage, match=r"broken\.png"):
        Predictor(run, device="cpu")(tmp_path)


@pytest.mark.parametrize(("place", "told"), [("nowhere", "no such file"), (".", "no images in this folder")])
def test_nothing_to_predict_is_told(run: Path, tmp_path: Path, place: str, told: str) -> None:
    with pytest.raises(DataError, match=told):
        Predictor(run, device="cpu")(tmp_path / place)


def test_wrong_options_are_told(run: Path) -> None:
    with pytest.raises(ConfigError, match="top_k is 0"):
        Predictor(run, top_k=0)
    with pytest.raises(ConfigError, match="amp: 'int8'"):
        Predictor(run, amp="int8")


def labels(patches: Path, result: Segmentation) -> NDArray[np.uint8]:
    file = patches / "annotations" / "validation" / Path(result.path).name
    with Image.open(file) as image:
        return np.asarray(image)


def test_pixels_are_told_at_the_images_own_size(segment_run: Path, patches: Path) -> None:
    predictor = Predictor(segment_run, device="cpu")
    folder = patches / "images" / "validation"
    results = predictor(folder)
    assert [result.path for result in results] == sorted(str(file) for file in folder.iterdir())
    for result in results:
        assert isinstance(result, Segmentation) and result.classes == ("background", "green", "blue")
        assert result.label_map.shape == labels(patches, result).shape
    right = [(one.label_map == labels(patches, one)).mean() for one in results]  # type: ignore[union-attr]
    assert np.mean(right) > 0.85, right
    with Image.open(results[0].path) as image:
        (in_memory,) = predictor(image.convert("RGB"))
    assert (in_memory.label_map == results[0].label_map).all() and in_memory.path == ""  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "options", [{"flip": True}, {"scales": (0.5, 1.0, 1.5), "flip": True}, {"slide": 32}]
)
def test_other_ways_to_look_find_the_same_but_not_pixel_for_pixel(
    options: dict[str, Any], segment_run: Path, patches: Path
) -> None:
    folder = patches / "images" / "validation"
    plain = Predictor(segment_run, device="cpu")(folder)
    other = Predictor(segment_run, device="cpu", workers=2, **options)(folder)
    same = np.mean([(a.label_map == b.label_map).mean() for a, b in zip(plain, other, strict=True)])  # type: ignore[union-attr]
    assert 0.8 < same < 1


def test_frames_of_an_animation_are_results(segment_run: Path, patches: Path, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 12), color) for color in ((0, 200, 0), (0, 0, 200))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    found = list(Predictor(segment_run, device="cpu").seen(tmp_path / "a.gif"))
    assert [(one.frame, one.result.size) for one in found] == [(0, (20, 12)), (1, (20, 12))]


def found_in(run: Path, images: Any, **options: Any) -> list[DetectedObjects]:
    found = Predictor(run, device="cpu", **options)(images)
    assert all(isinstance(one, DetectedObjects) for one in found)
    return found  # type: ignore[return-value]


def test_objects_are_found_in_the_images_own_pixels(detect_run: Path, blocks: Path) -> None:
    folder = blocks / "val2017"
    results = found_in(detect_run, folder)
    assert [result.path for result in results] == sorted(str(file) for file in folder.iterdir())
    document = json.loads((blocks / "annotations" / "instances_val2017.json").read_text())
    truth = [one for one in document["annotations"] if not one["iscrowd"]]
    near = 0
    for one in truth:
        result = results[one["image_id"] - 10]
        left, top, width, height = one["bbox"]
        best = result.boxes[result.labels == {3: 0, 7: 1}[one["category_id"]]][:1]
        near += bool((np.abs(best - [left, top, left + width, top + height]) < 5).all(axis=1).any())
    assert near >= len(truth) - 2
    with Image.open(results[2].path) as image:
        (in_memory,) = found_in(detect_run, image.convert("RGB"), workers=1)
        assert in_memory.path == "" and in_memory.size == image.size
    assert (in_memory.boxes == results[2].boxes).all() and in_memory.masks == results[2].masks


def test_objects_of_low_score_and_other_classes_are_left_out(detect_run: Path, blocks: Path) -> None:
    folder = blocks / "val2017"
    every, sure, green = (
        found_in(detect_run, folder, **options)
        for options in ({"score": 0.0}, {}, {"score": 0.0, "only": ["green"]})
    )
    for all_of, above, named in zip(every, sure, green, strict=True):
        assert above.scores.tolist() == [score for score in all_of.scores.tolist() if score >= 0.3]
        assert len(named) == all_of.names.count("green") and set(named.names) <= {"green"}
    assert sum(map(len, every)) > sum(map(len, sure)) > 0
    with pytest.raises(ConfigError, match="unknown class 'gren': did you mean green"):
        Predictor(detect_run, device="cpu", only=["gren"])


@pytest.mark.filterwarnings("ignore:OpenCV")
def test_objects_are_handed_on_as_others_take_them(detect_run: Path, blocks: Path) -> None:
    predictor = Predictor(detect_run, device="cpu", score=0.0)
    (result,) = predictor(blocks / "val2017" / "02.png")
    assert isinstance(result, DetectedObjects) and len(result) > 1
    given = result.to_supervision()
    assert given.class_id is not None and given.class_id.tolist() == result.labels.tolist()
    assert given["class_name"].tolist() == result.names and (given.xyxy == result.boxes).all()
    assert given.mask is not None and given.mask.shape == (len(result), *result.size[::-1])
    assert (given.mask[0] == result.mask(0)).all() and given.mask[0].any()
    rows = json.loads(json.dumps(result.to_coco(12, predictor.bundle.category_ids)))
    assert [row["category_id"] for row in rows] == [(3, 7)[label] for label in result.labels]
    assert all(row["image_id"] == 12 and row["segmentation"]["size"] == [44, 38] for row in rows)


def test_options_of_the_other_task_are_refused(
    run: Path, segment_run: Path, detect_run: Path, patches: Path
) -> None:
    wrong: list[tuple[Path, dict[str, Any], str]] = [
        (detect_run, {"top_k": 5}, "top_k: .* finds objects"),
        (detect_run, {"crops": 5}, "crops: .* finds objects"),
        (detect_run, {"image_size": 64}, "image_size: .* finds objects"),
        (detect_run, {"slide": 32}, "slide: .* finds objects"),
        (detect_run, {"scales": [-1.0]}, "scales"),
        (detect_run, {"score": 2.0}, "score is 2.0"),
        (segment_run, {"score": 0.5}, "score: .* classes of pixels"),
        (run, {"only": ["ant"]}, "only: .* classes of images"),
        (segment_run, {"top_k": 5}, "top_k: .* classes of pixels"),
        (segment_run, {"crops": 5}, "crops: .* classes of pixels"),
        (segment_run, {"image_size": 64}, "image_size: .* classes of pixels"),
        (run, {"scales": [1.0]}, "scales: .* classes of images"),
        (run, {"slide": 0}, "slide: .* classes of images"),
        (segment_run, {"scales": [0.0]}, "scales"),
    ]
    for place, options, told in wrong:
        with pytest.raises(ConfigError, match=told):
            Predictor(place, device="cpu", **options)
    with pytest.raises(ConfigError, match="classes of pixels apart, not classes of images"):
        list(Predictor(segment_run, device="cpu").classified(patches / "images"))
    with pytest.raises(ConfigError, match=r"classes of images apart: ask classified\(\) for them"):
        list(Predictor(run, device="cpu").seen(patches / "images"))
    with pytest.raises(ConfigError, match="finds objects, not classes of images"):
        list(Predictor(detect_run, device="cpu").classified(patches / "images"))
