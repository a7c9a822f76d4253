"""What `metaformer data check` finds in multi-label data sets."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from metaformer.cli import main
from metaformer.tasks.multilabel.check import check_multilabel
from toys import Write, build_task, tiny_config


def test_good_data_has_no_findings(tagged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = check_multilabel(tagged, workers=1, progress=False)
    assert report.ok and not report.findings
    assert [split.images for split in report.splits] == [12, 6]
    assert main(["data", "check", str(tagged)]) == 0, "recognized by its files"
    assert "2 classes" in capsys.readouterr().out


def test_everything_that_is_wrong_is_reported_at_once(tagged: Path, tmp_path: Path, write: Write) -> None:
    root = tmp_path / "data"
    shutil.copytree(tagged, root)
    lines = (root / "train.csv").read_text().splitlines()
    lines += ["00.png,blue", "gone.png,green", "bad.png,green", "copy.png,blue"]
    (root / "train.csv").write_text("\n".join(lines))
    write("train/bad.png", b"no image")
    write("train/extra.png", np.zeros((8, 8, 3), np.uint8))
    shutil.copy(root / "train/00.png", root / "train/copy.png")
    shutil.copy(root / "train/00.png", root / "val/00.png")
    (root / "val.csv").write_text((root / "val.csv").read_text() + "05.png,red\n")
    report = check_multilabel(root, workers=1, progress=False)
    found = {(finding.grade, finding.kind, name) for finding in report.findings
             for name in ("00.png", "gone.png", "bad.png", "copy.png", "extra.png", "05.png")
             if name in finding.text}  # fmt: skip
    assert {
        ("error", "layout", "00.png"),
        ("error", "layout", "gone.png"),
        ("error", "unreadable", "bad.png"),
        ("warning", "contradiction", "copy.png"),
        ("warning", "leak", "00.png"),
        ("warning", "unlabeled", "extra.png"),
        ("error", "layout", "05.png"),
    } <= found
    assert not report.ok


def test_classes_that_teach_nothing(write: Write, tmp_path: Path) -> None:
    for i in range(6):
        write(f"train/{i}.png", np.full((8, 8, 3), i * 20, np.uint8))
    rows = [f"{i}.png,1,0,{int(i == 0)}" for i in range(6)]
    write("train.csv", "\n".join(["image,always,never,rare", *rows]))
    report = check_multilabel(tmp_path / "data", ["train"], workers=1, progress=False)
    texts = {kind: [f.text for f in report.findings if f.kind == kind] for kind in ("absent", "uneven")}
    assert any("'never'" in text for text in texts["absent"])
    assert all(any(f"'{name}'" in text for text in texts["uneven"]) for name in ("always", "rare"))


def test_a_training_says_what_the_check_says(write: Write, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for i in range(6):
            write(f"{split}/{i}.png", np.full((32, 32, 3), i * 20 + len(split), np.uint8))
    rows = [f"{i}.png,1,0,{int(i == 0)}" for i in range(5)]
    train = write("train.csv", "\n".join(["image,always,never,rare", *rows]))
    val = write("val.csv", "\n".join(["image,always,never,rare", *rows]))
    root = tmp_path / "data"
    assert build_task(tiny_config("multilabel", root)).warnings == [
        f"{root}/train/5.png: train.csv has no row for it: it is not used",
        f"{train}: no image of 'never': never learned",
        f"{train}: every image has the label 'always': nothing is learned "
        "(1 more such; metaformer data check lists all)",
        f"{root}/val/5.png: val.csv has no row for it: it is not used",
        f"{val}: no image of 'never': never evaluated",
    ]
    report = check_multilabel(root, workers=1, progress=False)
    assert report.ok and report.count("warning") == 6
