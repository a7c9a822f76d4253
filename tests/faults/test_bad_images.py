"""Item 9: what the command line does with data that holds files from the image zoo."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from faults.zoo import Animal, zoo
from metaformer.cli import main

Tally = Callable[[str, str, bool], None]
WHAT = "bad images: error names the file; skip drops up to 0.1 %; evaluation never skips"
IMAGES = 1000
"""In training: one of them is 0.1 %."""
BAD = {animal.name: animal for animal in zoo() if animal.pixels is None}
TRAIN = [
    "train", "demo/classify", "--model.overrides={depths: [1, 1, 1, 1], dims: [8, 8, 8, 8]}",
    "--data.image_size=32", "--data.batch_size=500", "--data.workers=0", "--data.eval_batch_size=8",
    "--schedule.epochs=1", "--schedule.warmup_epochs=0", "--runtime.threads=1", "--runtime.device=cpu",
    "--augment.auto_augment=null",
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two classes of 500 images to train on and 4 to validate on: links to four files."""
    root = tmp_path / "data"
    for split, count in (("train", IMAGES // 2), ("val", 4)):
        for name, color in (("blue", (20, 40, 220)), ("red", (220, 40, 20))):
            folder = root / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), color).save(folder / "0.png")
            for number in range(1, count):
                os.link(folder / "0.png", folder / f"{number}.png")
    return root


def spoil(data: Path, place: str, animal: Animal) -> Path:
    """Put a file of the zoo in the place of an image."""
    file = data / place
    file.unlink()
    file.write_bytes(animal.content)
    return file


def train(data: Path, out: Path, policy: str) -> int:
    return main([*TRAIN, f"--data.root={data}", f"--out={out}", f"--data.on_bad_image={policy}"])


def test_training_names_leaves_out_or_gives_up(
    data: Path, tmp_path: Path, tally: Tally, capfd: pytest.CaptureFixture[str]
) -> None:
    first = spoil(data, "train/red/7.png", BAD["not-found.jpg"])
    status = train(data, tmp_path / "error", "error")
    line = capfd.readouterr().err.splitlines()[-1]
    named = status == 1 and f"{first}: not a JPEG" in line
    tally("9", WHAT, named)

    status = train(data, tmp_path / "skip", "skip")
    log = [json.loads(line) for line in (tmp_path / "skip/metrics.jsonl").read_text().splitlines()]
    noted = [line["note"] for line in log if line["kind"] == "bad_image"]
    dropped = status == 0 and len(noted) == 1 and str(first) in noted[0]
    tally("9", WHAT, dropped)

    spoil(data, "train/blue/300.png", BAD["nothing.jpg"])  # one more than 0.1 %
    capfd.readouterr()
    status = train(data, tmp_path / "many", "skip")
    line = capfd.readouterr().err.splitlines()[-1]
    gave_up = status == 1 and "2 of 1000 training images cannot be read" in line
    tally("9", WHAT, gave_up)
    assert (named, dropped, gave_up) == (True, True, True), line


def test_evaluation_never_skips(
    data: Path, tmp_path: Path, tally: Tally, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(data, tmp_path / "run", "skip") == 0
    bad = spoil(data, "val/blue/2.png", BAD["cut.png"])
    refused = []
    for words in (
        ["evaluate", str(tmp_path / "run"), "--data", str(data)],
        [*TRAIN, f"--data.root={data}", f"--out={tmp_path / 'other'}", "--data.on_bad_image=skip"],
    ):
        capfd.readouterr()
        status = main(words)
        refused.append(status == 1 and str(bad) in capfd.readouterr().err.splitlines()[-1])
        tally("9", WHAT, refused[-1])
    assert refused == [True, True]


def test_data_check_reports_every_bad_file_of_the_zoo(
    tmp_path: Path, tally: Tally, capfd: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        for name in ("kept", "caught"):
            (tmp_path / split / name).mkdir(parents=True)
    animals = zoo()
    for number, animal in enumerate(animals):
        place = (
            tmp_path
            / ("train" if number % 2 else "val")
            / ("kept" if animal.pixels is not None else "caught")
        )
        (place / f"{animal.name}.png").write_bytes(animal.content)
    assert main(["data", "check", str(tmp_path), "--json", str(tmp_path / "told.json")]) == 1
    told = json.loads((tmp_path / "told.json").read_text())
    unreadable = {f["text"].partition(": ")[0] for f in told["findings"] if f["kind"] == "unreadable"}
    expected = {str(file) for file in tmp_path.glob("*/caught/*")}
    tally("9", "data check: every bad file of the zoo is reported, and no good one", unreadable == expected)
    assert unreadable == expected and len(expected) == len(BAD)
    assert f"{len(BAD)} error(s)" in capfd.readouterr().out
