"""Predictions of single images and in batches."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file

from metaformer.data.folder import ImageFolder
from metaformer.distributed import Interrupted, World
from metaformer.errors import BadImage, ConfigError, DataError, OutputError
from metaformer.factory import create_model
from metaformer.inference.batch import predict_all
from metaformer.inference.predictor import Predictor
from metaformer.storage import lock
from metaformer.tasks.detection.results import DetectedObjects
from metaformer.tasks.segmentation.results import Segmentation
from metaformer.training.train import train
from metaformer.weights.hub import from_pretrained, save_pretrained
from toys import tiny_config
from warm import python


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    place = tmp_path_factory.mktemp("model")
    model = create_model("poolformer_n", num_classes=3, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))
    save_pretrained(model, place)
    return Predictor(place, class_names=["ant", "bee", "cat"], image_size=32, device="cpu", batch_size=4)


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_results_are_drawn_saved_and_shown(
    predictor: Predictor, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = next(iter(sorted((pets / "val").rglob("*.png"))))
    (of_file,), (in_memory,) = predictor(file), predictor(Image.open(file))
    drawn = of_file.plot()
    assert drawn.mode == "RGB" and drawn.width >= 320
    assert np.array_equal(np.asarray(drawn), np.asarray(in_memory.plot()))
    other = of_file.plot(Image.new("L", (50, 50), 255))
    assert not np.array_equal(np.asarray(other), np.asarray(drawn))
    assert of_file.save(tmp_path / "new" / "one.png") == tmp_path / "new" / "one.png"
    with Image.open(tmp_path / "new" / "one.png") as saved:
        assert saved.format == "PNG" and np.array_equal(np.asarray(saved), np.asarray(drawn))
    shown: list[Image.Image] = []
    monkeypatch.setattr(Image.Image, "show", lambda image: shown.append(image))
    in_memory.show()
    assert shown[0].size == drawn.size
    with pytest.raises(ConfigError, match=r"one\.xyz: an image's name ends in \.png, "):
        of_file.save(tmp_path / "one.xyz")
    with pytest.raises(DataError, match="plot"):
        copy.copy(in_memory).drawn_on(None).plot()
    assert "image" not in in_memory.to_dict() and in_memory == type(in_memory)(**in_memory.to_dict())


def test_a_network_of_another_task_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    save_pretrained(predictor.model.model, tmp_path)
    with pytest.raises(
        ConfigError, match=r"task is 'detect': .* is for image classification, task 'classify'"
    ):
        Predictor(tmp_path, task="detect", device="cpu")
    assert Predictor(tmp_path, task="classify", device="cpu").task == "classify"


def test_every_image_once_over_all_parts(predictor: Predictor, pets: Path, tmp_path: Path) -> None:
    source = ImageFolder(pets, "val")
    parts = [predict_all(predictor, source, tmp_path, World(rank, rank, 2)) for rank in range(2)]
    assert [part.file.name for part in parts] == ["part-00000-of-00002.jsonl", "part-00001-of-00002.jsonl"]
    assert [part.images for part in parts] == [8, 7]
    found = [line for part in parts for line in lines(part.file)]
    expected = {result.path: result for result in predictor(pets / "val")}
    assert sorted(str(line["path"]) for line in found) == sorted(expected)
    for line in found:
        assert line["labels"] == list(expected[str(line["path"])].labels)
    assert {path.name for path in tmp_path.iterdir()} == {
        *(part.file.name for part in parts),
        *("job.json", ".lock-00000", ".lock-00001"),
    }


def test_a_stop_loses_nothing_and_nothing_is_predicted_twice(
    predictor: Predictor, pets: Path, tmp_path: Path
) -> None:
    source, asked = ImageFolder(pets, "val"), []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 12

    whole = predict_all(predictor, source, tmp_path / "whole", World()).file
    with pytest.raises(Interrupted):
        predict_all(predictor, source, tmp_path / "cut", World(), stop=stop)
    (part,) = (tmp_path / "cut").glob(".part-*")
    assert len(lines(part)) == 8
    with part.open("a") as stream:
        stream.write('{"path": "half a li')
    done = predict_all(predictor, source, tmp_path / "cut", World())
    assert (done.before, done.images) == (8, 15)
    assert done.file.read_text() == whole.read_text() and not part.exists()
    again = predict_all(predictor, source, tmp_path / "cut", World())
    assert again.before == 15


@pytest.mark.parametrize("damage", [b"\0" * 100 + b"\n", b"[1]\n", b'{"path": "half'])
def test_damaged_lines_are_predicted_again_or_refused(
    predictor: Predictor, pets: Path, tmp_path: Path, damage: bytes
) -> None:
    source = ImageFolder(pets, "val")
    whole = predict_all(predictor, source, tmp_path, World()).file
    good = whole.read_bytes()
    part = whole.with_name(f".{whole.name}")
    part.write_bytes(good.splitlines(keepends=True)[0] + damage)
    whole.unlink()
    assert predict_all(predictor, source, tmp_path, World()).before == 1
    assert whole.read_bytes() == good
    whole.write_bytes(good[: len(good) // 2])
    with pytest.raises(OutputError, match=r"part-00000.*7 of 15"):
        predict_all(predictor, source, tmp_path, World())
    whole.write_bytes(good + good)
    with pytest.raises(OutputError, match=r"part-00000.*30 lines"):
        predict_all(predictor, source, tmp_path, World())


def test_two_processes_do_not_write_the_same_part(
    predictor: Predictor, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metaformer.storage.PATIENCE", 0.0)
    source = ImageFolder(pets, "val")
    with lock(tmp_path / "out" / ".lock-00000", "it"), pytest.raises(OutputError, match="process"):
        predict_all(predictor, source, tmp_path / "out", World())


def test_bad_images(
    predictor: Predictor, bad_pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ImageFolder(bad_pets, "val")
    with pytest.raises(BadImage, match=r"bee/1\.png"):
        predict_all(predictor, source, tmp_path / "error", World())
    with pytest.raises(DataError, match="1 of 15 images"):
        predict_all(predictor, source, tmp_path / "many", World(), skip_bad=True)
    monkeypatch.setattr("metaformer.inference.batch.BAD_SHARE", 0.1)
    done = predict_all(predictor, source, tmp_path / "skip", World(), skip_bad=True)
    found = lines(done.file)
    assert done.bad == 1 and len(found) == 15
    (bad,) = [line for line in found if "error" in line]
    assert str(bad["path"]).endswith("bee/1.png") and "empty" in str(bad["error"])
    assert [line["path"] for line in found] == [str(path) for path in source.paths]


def test_predictions_of_another_job_are_not_mixed_in(
    predictor: Predictor, pets: Path, tmp_path: Path
) -> None:
    source = ImageFolder(pets, "val")
    predict_all(predictor, source, tmp_path / "out", World())
    with pytest.raises(OutputError, match="processes: 1 → 2"):
        predict_all(predictor, source, tmp_path / "out", World(0, 0, 2))
    with pytest.raises(OutputError, match="images_sha256"):
        predict_all(predictor, ImageFolder(pets, "train"), tmp_path / "out", World())
    other = copy.deepcopy(predictor)
    with torch.no_grad():
        other.model.model.head.fc.bias[0] += 1
    with pytest.raises(OutputError, match="weights_sha256"):
        predict_all(other, source, tmp_path / "out", World())
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(OutputError, match="other"):
        predict_all(predictor, source, tmp_path / "other", World())


def test_two_killed_processes_resume_from_the_command_line(
    predictor: Predictor, pets: Path, tmp_path: Path
) -> None:
    save_pretrained(predictor.model.model, tmp_path / "model")
    args = ["predict", str(tmp_path / "model"), "--data", str(pets), "--out", str(tmp_path / "out")]
    args += ["--split", "train", "--batch-size", "1", "--device", "cpu", "--image-size", "32"]

    def start(rank: int, *interpreter: str) -> subprocess.Popen[str]:
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        env = {**os.environ, **own}
        command = [*interpreter, "-m", "metaformer", *args]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    victim = start(0, sys.executable)
    part = tmp_path / "out" / ".part-00000-of-00002.jsonl"
    while victim.poll() is None and not (part.exists() and part.stat().st_size):
        time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    both = [start(rank, *python()) for rank in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    parts = (tmp_path / "out" / f"part-0000{rank}-of-00002.jsonl" for rank in range(2))
    paths = [str(line["path"]) for part in parts for line in lines(part)]
    assert sorted(paths) == [str(path) for path in ImageFolder(pets, "train").paths]


PLAIN = {"color_jitter": 0.0, "erase": 0.0}
SHORT: dict[str, Any] = {
    "optim": {"lr": 1e-2},
    "schedule": {"steps": 40, "warmup_steps": 0},
    "evaluate": {"every_steps": 20},
}


@pytest.fixture(scope="module")
def run(pets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that tells the pets apart."""
    return train(
        tiny_config("classify", pets, augment=PLAIN, **SHORT), tmp_path_factory.mktemp("runs") / "run"
    ).run


@pytest.fixture(scope="module")
def segment_run(patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter of green and blue squares."""
    segment = {"dropout": 0.0, "photometric": False, "scale": [1.0, 1.5]}
    config = tiny_config("segment", patches, augment=PLAIN, segment=segment, **SHORT)
    return train(config, tmp_path_factory.mktemp("runs") / "segment").run


def test_a_run_predicts_and_draws_on_the_background_that_it_trained_on(
    own_pets: Path, tmp_path: Path
) -> None:
    config = tiny_config("classify", own_pets, data={"background": "white"}, **SHORT)
    run = train(config, tmp_path / "run").run
    predictor = Predictor(run, device="cpu")
    save_pretrained(from_pretrained(run), tmp_path / "saved")
    saved = Predictor(tmp_path / "saved", device="cpu")
    assert saved.model.preprocess == predictor.model.preprocess
    assert "| blended on 255, 255, 255 |" in (tmp_path / "saved" / "README.md").read_text()
    with Image.open(own_pets / "val" / "bee" / "1.png") as opened:
        image = opened.convert("RGB")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / "clear.png")
    white = Image.new("RGBA", image.size, "white")
    Image.alpha_composite(white, image).convert("RGB").save(tmp_path / "blended.png")
    sources = (tmp_path / "blended.png", tmp_path / "clear.png", image, np.asarray(image))
    expected, *found = predictor(sources)
    for result in [*found, *saved(sources)]:
        assert result.scores == pytest.approx(expected.scores, rel=1e-5)
        assert np.array_equal(np.asarray(result.plot()), np.asarray(expected.plot()))
    assert predictor(image.convert("RGB"))[0].scores != pytest.approx(expected.scores, rel=1e-5)


def test_sources_are_files_folders_globs_images_and_lists(run: Path, pets: Path) -> None:
    predictor = Predictor(run, device="cpu", batch_size=4)
    folder = predictor(pets / "val")
    assert [result.path for result in folder] == sorted(str(path) for path in (pets / "val").rglob("*.png"))
    assert sum(result.label == Path(result.path).parent.name for result in folder) >= 12
    (one,) = predictor(str(pets / "val" / "bee" / "1.png"))
    assert one.label == "bee"
    assert one.scores == pytest.approx(next(r for r in folder if r.path == one.path).scores, rel=1e-5)
    assert [r.path for r in predictor(f"{pets}/val/*/0.png")] == [
        f"{pets}/val/{name}/0.png" for name in ("ant", "bee", "cat")
    ]
    with Image.open(pets / "val" / "cat" / "2.png") as image:
        image.load()
    both = predictor([image, pets / "val" / "ant" / "0.png"])
    assert [(r.path == "", r.label) for r in both] == [(True, "cat"), (False, "ant")]


def test_results_are_ranked_probabilities(run: Path, pets: Path) -> None:
    image = pets / "val" / "ant" / "0.png"
    (result,) = Predictor(run, device="cpu")(image)
    assert sum(result.scores) == pytest.approx(1.0)
    assert list(result.scores) == sorted(result.scores, reverse=True) and result.score == result.scores[0]
    assert result.labels == tuple(("ant", "bee", "cat")[i] for i in result.indices)
    (best,) = Predictor(run, device="cpu", top_k=2)(image)
    assert best.labels == result.labels[:2]


def test_workers_change_nothing_and_views_are_averaged(run: Path, pets: Path) -> None:
    plain, worked = Predictor(run, device="cpu")(pets / "val"), Predictor(run, workers=2)(pets / "val")
    for one, other in zip(plain, worked, strict=True):
        assert one.path == other.path and one.scores == pytest.approx(other.scores, rel=1e-4)
    for options in ({"flip": True}, {"crops": 5}):
        averaged = Predictor(run, device="cpu", **options)(pets / "val")  # type: ignore[arg-type]
        assert any(
            a.scores != pytest.approx(b.scores, rel=1e-4) for a, b in zip(plain, averaged, strict=True)
        )


def test_imagenet_classes_are_named_where_a_model_has_no_names(pets: Path, tmp_path: Path) -> None:
    file, image = tmp_path / "w.safetensors", pets / "val" / "ant" / "0.png"
    save_file(create_model("poolformer_n").state_dict(), file)
    (result,) = Predictor("poolformer_n", file, image_size=32)(image)
    assert len(result.labels) == 5 and not any(label.isdigit() for label in result.labels)
    names = [f"c{i}" for i in range(1000)]
    (named,) = Predictor("poolformer_n", file, image_size=32, class_names=names)(image)
    assert named.label == f"c{result.indices[0]}"


def test_images_that_cannot_be_read_or_found_are_named(run: Path, tmp_path: Path) -> None:
    predictor = Predictor(run, device="cpu")
    (tmp_path / "broken.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    for source, error, named in (
        (".", BadImage, r"broken\.png"),
        ("nowhere", DataError, "nowhere"),
        ("empty", DataError, "empty"),
    ):
        with pytest.raises(error, match=named):
            predictor(tmp_path / source)


def label_map(patches: Path, result: Segmentation) -> NDArray[np.uint8]:
    with Image.open(patches / "annotations" / "validation" / Path(result.path).name) as image:
        return np.asarray(image)


def test_pixels_are_classified_at_the_images_own_size(segment_run: Path, patches: Path) -> None:
    predictor = Predictor(segment_run, device="cpu")
    folder = patches / "images" / "validation"
    results = predictor(folder)
    assert [result.path for result in results] == sorted(str(file) for file in folder.iterdir())
    for result in results:
        assert isinstance(result, Segmentation) and result.classes == ("background", "green", "blue")
        assert result.label_map.shape == label_map(patches, result).shape
    right = [(result.label_map == label_map(patches, result)).mean() for result in results]
    assert np.mean(right) > 0.85, right
    with Image.open(results[0].path) as image:
        (in_memory,) = predictor(image.convert("RGB"))
    assert (in_memory.label_map == results[0].label_map).all() and in_memory.path == ""


@pytest.mark.parametrize(
    "options", [{"flip": True}, {"scales": (0.5, 1.0, 1.5), "flip": True}, {"sliding_window": 32}]
)
def test_augmentation_and_windows_change_few_pixels(
    options: dict[str, Any], segment_run: Path, patches: Path
) -> None:
    folder = patches / "images" / "validation"
    plain = Predictor(segment_run, device="cpu")(folder)
    other = Predictor(segment_run, device="cpu", workers=2, **options)(folder)
    same = np.mean([(a.label_map == b.label_map).mean() for a, b in zip(plain, other, strict=True)])
    assert 0.8 < same < 1


def detect(run: Path, images: Any, **options: Any) -> list[DetectedObjects]:
    results = Predictor(run, device="cpu", **options)(images)
    assert all(isinstance(result, DetectedObjects) for result in results)
    return results


def test_objects_are_detected_in_the_images_own_pixels(detect_run: Path, blocks: Path) -> None:
    folder = blocks / "val2017"
    results = detect(detect_run, folder)
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
        (in_memory,) = detect(detect_run, image.convert("RGB"), workers=1)
        assert in_memory.path == "" and in_memory.size == image.size
    assert (in_memory.boxes == results[2].boxes).all() and in_memory.masks == results[2].masks


@pytest.mark.parametrize(
    ("task", "options", "named"),
    [
        ("run", {"top_k": 0}, r"top_k\b.*0"),
        ("run", {"amp": "int8"}, "amp: 'int8'"),
        ("run", {"crops": 2}, r"crops\b.*2"),
        ("run", {"batch_size": 0}, r"batch_size\b.*0"),
        ("segment_run", {"scales": [0.0]}, "scales"),
        ("segment_run", {"scales": []}, "scales"),
        ("segment_run", {"sliding_window": -1}, r"sliding_window\b.*-1"),
        ("segment_run", {"workers": -1}, r"workers\b.*-1"),
        ("detect_run", {"scales": [-1.0]}, "scales"),
        ("detect_run", {"scales": []}, "scales"),
    ],
)
def test_wrong_options_are_named(
    task: str, options: dict[str, Any], named: str, request: pytest.FixtureRequest
) -> None:
    with pytest.raises(ConfigError, match=named):
        Predictor(request.getfixturevalue(task), device="cpu", **options)
