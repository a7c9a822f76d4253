import copy
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from metaformer.data.folder import ImageFolder
from metaformer.distributed import Interrupted, World
from metaformer.errors import BadImage, DataError, OutputError
from metaformer.factory import create_model
from metaformer.inference.batch import predict_all
from metaformer.inference.predictor import Predictor
from metaformer.storage import lock
from metaformer.weights.hub import save_pretrained


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    place = tmp_path_factory.mktemp("model")
    model = create_model("poolformer_n", num_classes=3, depths=(1, 1, 1, 1), dims=(8, 8, 16, 16))
    save_pretrained(model, place)
    return Predictor(place, class_names=["ant", "bee", "cat"], image_size=32, device="cpu", batch_size=4)


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


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

    def start(rank: int) -> subprocess.Popen[str]:
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
        env = {**os.environ, **own}
        command = [sys.executable, "-m", "metaformer", *args]
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    victim = start(0)
    part = tmp_path / "out" / ".part-00000-of-00002.jsonl"
    while victim.poll() is None and not (part.exists() and part.stat().st_size):
        pass
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    both = [start(rank) for rank in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    parts = (tmp_path / "out" / f"part-0000{rank}-of-00002.jsonl" for rank in range(2))
    paths = [str(line["path"]) for part in parts for line in lines(part)]
    assert sorted(paths) == [str(path) for path in ImageFolder(pets, "train").paths]
