"""`metaformer data demo`, `check` and `shard`."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metaformer.tasks import TASKS

Cli = Callable[..., Any]


@pytest.fixture
def own_pets(pets: Path, tmp_path: Path) -> Path:
    """Pets, to be changed."""
    return shutil.copytree(pets, tmp_path / "pets")


def test_demo_writes_a_data_set_for_each_task(cli: Cli, tmp_path: Path) -> None:
    status, out, _ = cli("data", "demo", tmp_path / "demo", "--copies=1", "--scenes", "2", "1")
    assert status == 0 and all(str(tmp_path / "demo" / task) in out for task in TASKS)
    assert len(list((tmp_path / "demo" / "classify" / "val").iterdir())) == 10


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_shards_are_written_and_checked(
    kind: str, pets: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    out, file = tmp_path / "out", tmp_path / "found.json"
    result = cli("data", "shard", pets, out, f"--to={kind}", "--workers=1")
    assert result.status == 0 and "train: 24 images in 1 files" in result.out
    assert cli("data", "check", out, "--workers=1", f"--json={file}").status == 0
    assert json.loads(file.read_text())["ok"]
    result = cli("data", "shard", pets, out)
    assert result.status == 1 and "shards.json" in result.error


def test_an_unreadable_image_ends_in_status_1(own_pets: Path, cli: Cli, tmp_path: Path) -> None:
    (own_pets / "val/bee/1.png").write_bytes(b"junk")
    out = tmp_path / "out"
    result = cli("data", "check", own_pets, "--workers=1")
    assert result.status == 1 and "val/bee/1.png" in result.out
    result = cli("data", "shard", own_pets, out, "--split=val", "--workers=1")
    assert result.status == 1 and "val/bee/1.png" in result.error and not out.exists()
    assert cli("data", "shard", own_pets, out, "--split=train", "--workers=1").status == 0


def test_help_describes_subcommands_and_what_a_stream_costs(cli: Cli) -> None:
    for args in (["data"], ["data", "--help"]):
        status, out, _ = cli(*args)
        assert status == 0 and all(name in out for name in ("demo", "check", "shard"))
    text = " ".join(cli("data", "shard", "--help").out.split())
    assert "an epoch may repeat or miss some, and a resumed run sees another order" in text
    for name, hint in (("shrad", "did you mean shard"), ("zzz", "demo, check, shard")):
        result = cli("data", name, "x")
        assert result.status == 2 and hint in result.error


@pytest.mark.parametrize("folder", ["masks", "labels"])
def test_scenes_need_class_names(folder: str, cli: Cli, tmp_path: Path) -> None:
    scenes(tmp_path, folder)
    result = cli("data", "check", tmp_path, "--workers=1")
    assert result.status == 1 and {"masks": "classes.txt", "labels": "data.yaml"}[folder] in result.out


def scenes(root: Path, folder: str) -> None:
    """Two images in train and val, with label maps in `masks` or an object of YOLO's in `labels`."""
    draw = np.random.RandomState(0)
    for split in ("train", "val"):
        for part in ("images", folder):
            (root / part / split).mkdir(parents=True)
        for i in range(2):
            pixels = draw.randint(0, 256, (9, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"images/{split}/{i}.png")
            if folder == "masks":
                Image.fromarray(pixels[..., 0] % 3).save(root / f"masks/{split}/{i}.png")
            else:
                (root / f"labels/{split}/{i}.txt").write_text("0 0.5 0.5 1 1\n")


def test_label_maps_are_recognized_and_checked(cli: Cli, tmp_path: Path) -> None:
    root, names, file = tmp_path / "scenes", tmp_path / "names.txt", tmp_path / "found.json"
    scenes(root, "masks")
    names.write_text("sky\nsea\nsand\n")

    def check(*options: str) -> Any:
        return cli("data", "check", root, "--workers=1", *options)

    named = f"--class-names={names}"
    result = check(named, f"--json={file}")
    assert result.status == 0 and "train: 2 images with label maps of 3 of 3 classes" in result.out
    assert json.loads(file.read_text())["splits"][0]["per_class"]["sea"]["images"] == 2
    assert check(named, "--layout=folders", "--reduce-zero-label=yes").status == 0
    result = check("--layout=voc")
    assert result.status == 1 and f"{root}/JPEGImages" in result.out
    Image.fromarray(np.full((9, 8), 3, dtype=np.uint8)).save(root / "masks/val/1.png")
    result = check(named)
    assert result.status == 1 and f"error: {root}/masks/val/1.png: label 3 (72 pixels)" in result.out


def test_objects_are_recognized_and_checked(cli: Cli, tmp_path: Path) -> None:
    root, file = tmp_path / "scenes", tmp_path / "found.json"
    scenes(root, "labels")
    (root / "classes.txt").write_text("cat\n")

    def check(*options: str) -> Any:
        return cli("data", "check", root, "--workers=1", *options)

    result = check(f"--json={file}")
    assert result.status == 0 and "train: 2 images, 0 of them empty, with 2 objects" in result.out
    assert json.loads(file.read_text())["splits"][0]["per_class"]["cat"]["objects"] == 2
    for layout, named in (("coco", "train"), ("voc", "Annotations")):
        result = check(f"--layout={layout}")
        assert result.status == 1 and named in result.out
    (root / "labels/train/0.txt").write_text("1 0.5 0.5 1 1\n")
    result = check()
    assert result.status == 1 and f"error: {root}/labels/train/0.txt: line 1: class 1" in result.out
    Image.new("L", (8, 9)).save(root / "labels/train/0.png")  # also a label map
    result = check()
    assert result.status == 2 and "--task" in result.error
    result = check("--task=segment", "--split=train")
    assert result.status == 1 and "'cat'" in result.out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--layout=folder"], "--layout.*'folder'.*folders"),
        (["--layout=yolo", "--reduce-zero-label=yes"], "--layout, --reduce-zero-label"),
        (["--task=classify", "--layout=coco"], "--layout.*image classification"),
        (["--task=classif"], "--task.*'classif'.*classify"),
        (["--workers=few"], "--workers.*'few'"),
    ],
)
def test_wrong_options_are_named(options: list[str], named: str, pets: Path, cli: Cli) -> None:
    result = cli("data", "check", pets, *options)
    assert result.status == 2 and re.search(named, result.error), result
