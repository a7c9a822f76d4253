import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metaformer.cli import main


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    """Two classes of three images, in train and val."""
    draw = np.random.RandomState(0)
    for split in ("train", "val"):
        for name in ("daisy", "rose"):
            (tmp_path / "flowers" / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = draw.randint(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "flowers" / split / name / f"{i}.png")
    return tmp_path / "flowers"


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_shard_then_check(
    kind: str,
    flowers: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    out = str(tmp_path / "out")
    assert main(["data", "shard", str(flowers), out, f"--to={kind}", "--workers=1"]) == 0
    assert "train: 6 images in 1 files" in capsys.readouterr().out
    assert main(["data", "check", out, "--workers=1", f"--json={tmp_path / 'found.json'}"]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["ok"]
    assert main(["data", "shard", str(flowers), out]) == 1
    assert "out: holds shards.json" in capsys.readouterr().err


def test_faults_end_in_status_1(flowers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (flowers / "val/rose/1.png").write_bytes(b"junk")
    assert main(["data", "check", str(flowers), "--workers=1"]) == 1
    assert "val/rose/1.png" in capsys.readouterr().out
    assert main(["data", "shard", str(flowers), str(tmp_path / "out"), "--split=val", "--workers=1"]) == 1
    assert "val/rose/1.png" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["data", "shard", str(flowers), str(tmp_path / "out"), "--split=train", "--workers=1"]) == 0


def test_help_tells_what_there_is_and_what_a_stream_costs(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["data"], ["data", "--help"]):
        assert main(words) == 0
        text = capsys.readouterr().out
        assert all(what in text for what in ("demo", "check", "shard"))
    assert main(["data", "shard", "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "an epoch may repeat or miss some, and a resumed run sees another order" in text
    assert main(["data", "shrad", "x"]) == 2
    assert "did you mean shard?" in capsys.readouterr().err
    assert main(["data", "zzz"]) == 2
    assert "known: demo, check, shard" in capsys.readouterr().err


def test_label_maps_are_recognized_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, draw = tmp_path / "scenes", np.random.RandomState(0)
    for split in ("train", "val"):
        for part in ("images", "masks"):
            (root / part / split).mkdir(parents=True)
        for i in range(2):
            pixels = draw.randint(0, 256, (9, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"images/{split}/{i}.png")
            Image.fromarray(pixels[..., 0] % 3).save(root / f"masks/{split}/{i}.png")
    names = tmp_path / "names.txt"
    names.write_text("sky\nsea\nsand\n")
    words = ["data", "check", str(root), "--workers=1"]
    assert main(words) == 1
    assert "classes.txt: no such file: name the classes in it" in capsys.readouterr().out
    assert main([*words, f"--classes={names}", f"--json={tmp_path / 'found.json'}"]) == 0
    assert "train: 2 images with label maps of 3 of 3 classes" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text())["splits"][0]["per_class"]["sea"]["images"] == 2
    assert main([*words, f"--classes={names}", "--layout=folders", "--reduce-zero-label=yes"]) == 0
    assert main([*words, "--layout=voc"]) == 1
    assert f"{root}/JPEGImages: no such folder" in capsys.readouterr().out
    assert main([*words, "--layout=folder"]) == 1
    assert "did you mean folders?" in capsys.readouterr().err
    Image.fromarray(np.full((9, 8), 3, dtype=np.uint8)).save(root / "masks/val/1.png")
    assert main([*words, f"--classes={names}"]) == 1
    assert f"error: {root}/masks/val/1.png: label 3 (72 pixels)" in capsys.readouterr().out


def test_objects_are_recognized_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, draw = tmp_path / "scenes", np.random.RandomState(0)
    for split in ("train", "val"):
        for part in ("images", "labels"):
            (root / part / split).mkdir(parents=True)
        pixels = draw.randint(0, 256, (9, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"images/{split}/0.png")
        (root / f"labels/{split}/0.txt").write_text("0 0.5 0.5 1 1\n")
    words = ["data", "check", str(root), "--workers=1"]
    assert main(words) == 1
    assert "data.yaml: no such file: name the classes in it" in capsys.readouterr().out
    (root / "classes.txt").write_text("cat\n")
    assert main([*words, f"--json={tmp_path / 'found.json'}"]) == 0
    assert "train: 1 images, 0 of them empty, with 1 objects" in capsys.readouterr().out
    assert json.loads((tmp_path / "found.json").read_text())["splits"][0]["per_class"]["cat"]["objects"] == 1
    assert main([*words, "--layout=coco"]) == 1
    assert "no annotations of split 'train'" in capsys.readouterr().out
    assert main([*words, "--task=detect", "--layout=voc"]) == 1
    assert "Annotations is wanted" in capsys.readouterr().out
    (root / "labels/train/0.txt").write_text("1 0.5 0.5 1 1\n")
    assert main(words) == 1
    assert f"error: {root}/labels/train/0.txt: line 1: class 1 is not among the 1" in capsys.readouterr().out
    Image.new("L", (8, 9)).save(root / "labels/train/0.png")
    assert main(words) == 2
    assert "holds objects and label maps: say --task detect or segment" in capsys.readouterr().err
    assert main([*words, "--task=segment", "--split=train"]) == 1
    assert "only one class, 'cat'" in capsys.readouterr().out
