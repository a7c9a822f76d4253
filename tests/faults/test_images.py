"""Item 9: unusual and damaged image files, read on their own and in a data set."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from faults.odd_images import OddImage, odd_images
from faults.run import Tally
from metaformer.cli import main

ODD_IMAGES = odd_images()
BAD = {image.name: image for image in ODD_IMAGES if image.pixels is None}
WHAT = "bad images: error names the file; skip drops up to 0.1 %; evaluation never skips"
TRAINING_IMAGES = 1000
"""One of them is 0.1 %."""
TRAIN = [
    "train", "demo/classify", "--model.overrides={depths: [1, 1, 1, 1], dims: [8, 8, 8, 8]}",
    "--data.image_size=32", "--data.batch_size=500", "--data.workers=0", "--data.eval_batch_size=8",
    "--schedule.epochs=1", "--schedule.warmup_epochs=0", "--runtime.threads=1", "--runtime.device=cpu",
    "--augment.auto_augment=null",
]  # fmt: skip
READER = """
import json, logging, sys, time
from pathlib import Path
import numpy as np
from metaformer.data.image import read_image
from metaformer.errors import BadImage

class Recorder(logging.Handler):
    def emit(self, record): warnings.append(record.getMessage())

def peak():
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024

warnings, results = [], {}
logging.getLogger("metaformer").addHandler(Recorder())
for file in sorted(Path(sys.argv[1]).iterdir()):
    warnings.clear()
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before, started = peak(), time.process_time()
    result = {}
    try:
        image = read_image(file)
        result["mode"] = image.mode
    except BadImage as error:
        result["reason"] = error.reason
        result["names"] = str(error.path) == str(file) and str(file) in str(error)
        result["lines"] = len(str(error).splitlines())
    result["seconds"], result["bytes"] = time.process_time() - started, peak() - before
    result["warnings"] = list(warnings)
    if "mode" in result:
        np.save(Path(sys.argv[2]) / f"{file.name}.npy", np.asarray(image))
    results[file.name] = result
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def decoded(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Results of reading all files in another process, which a decoder could crash."""
    files, out = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("decoded")
    for image in ODD_IMAGES:
        (files / image.name).write_bytes(image.content)
    args = [sys.executable, "-c", READER, str(files), str(out)]
    done = subprocess.run(args, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), out


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="measures peak memory by Linux's /proc"
)
@pytest.mark.parametrize("image", ODD_IMAGES, ids=lambda image: image.name)
def test_each_file_is_decoded_or_refused_as_documented(
    image: OddImage, decoded: tuple[dict[str, Any], Path], tally: Tally
) -> None:
    results, out = decoded
    result = results[image.name]
    problem = _refusal_problem(image, result) if image.pixels is None else _image_problem(image, result, out)
    tally("9", "image zoo: each file gives its documented result", not problem, problem)


def test_there_are_many_odd_images() -> None:
    assert len(ODD_IMAGES) >= 24


def _refusal_problem(image: OddImage, result: dict[str, Any]) -> str:
    if not re.search(image.reason, result.get("reason", "")):
        return f"expected {image.reason!r}, got {result}"
    if not result["names"] or result["lines"] != 1:
        return f"the error is not one line that names the file: {result}"
    if image.bomb and (result["seconds"] > 0.1 or result["bytes"] > 50 << 20):
        return f"not refused from the header: {result}"
    return ""


def _image_problem(image: OddImage, result: dict[str, Any], out: Path) -> str:
    if result.get("mode") != "RGB":
        return f"expected an image, got {result}"
    pixels, expected = np.load(out / f"{image.name}.npy"), image.pixels
    assert expected is not None
    if pixels.shape != expected.shape:
        return f"expected shape {expected.shape}, got {pixels.shape}"
    if (worst := int(np.abs(pixels.astype(int) - expected).max())) > image.within:
        return f"differs by {worst}, which is more than {image.within}"
    warned = any("first frame" in line and image.name in line for line in result["warnings"])
    return "" if warned == image.warns else f"warnings: {result['warnings']}"


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """Two classes of 500 training and 4 validation images: links to four files."""
    root = tmp_path / "data"
    for split, count in (("train", TRAINING_IMAGES // 2), ("val", 4)):
        for name, color in (("blue", (20, 40, 220)), ("red", (220, 40, 20))):
            folder = root / split / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), color).save(folder / "0.png")
            for number in range(1, count):
                os.link(folder / "0.png", folder / f"{number}.png")
    return root


def replace(root: Path, name: str, image: OddImage) -> Path:
    """Replace an image of the data set."""
    file = root / name
    file.unlink()
    file.write_bytes(image.content)
    return file


def train(root: Path, out: Path, on_bad_image: str) -> int:
    return main([*TRAIN, f"--data.root={root}", f"--out={out}", f"--data.on_bad_image={on_bad_image}"])


def test_training_stops_or_skips_up_to_a_share(
    data_set: Path, tmp_path: Path, tally: Tally, capfd: pytest.CaptureFixture[str]
) -> None:
    first = replace(data_set, "train/red/7.png", BAD["not-found.jpg"])
    status = train(data_set, tmp_path / "error", "error")
    line = capfd.readouterr().err.splitlines()[-1]
    tally("9", WHAT, status == 1 and f"{first}: not a JPEG" in line, line)

    status = train(data_set, tmp_path / "skip", "skip")
    log = [json.loads(line) for line in (tmp_path / "skip/metrics.jsonl").read_text().splitlines()]
    notes = [line["note"] for line in log if line["kind"] == "bad_image"]
    tally("9", WHAT, status == 0 and len(notes) == 1 and str(first) in notes[0], notes)

    replace(data_set, "train/blue/300.png", BAD["nothing.jpg"])  # more than 0.1 %
    capfd.readouterr()
    status = train(data_set, tmp_path / "many", "skip")
    line = capfd.readouterr().err.splitlines()[-1]
    tally("9", WHAT, status == 1 and "2 of 1000 training images cannot be read" in line, line)


def test_evaluation_never_skips(
    data_set: Path, tmp_path: Path, tally: Tally, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(data_set, tmp_path / "run", "skip") == 0
    bad = replace(data_set, "val/blue/2.png", BAD["cut.png"])
    for args in (
        ["evaluate", str(tmp_path / "run"), "--data", str(data_set)],
        [*TRAIN, f"--data.root={data_set}", f"--out={tmp_path / 'other'}", "--data.on_bad_image=skip"],
    ):
        capfd.readouterr()
        status = main(args)
        line = capfd.readouterr().err.splitlines()[-1]
        tally("9", WHAT, status == 1 and str(bad) in line, line)


def test_data_check_reports_exactly_the_bad_files(
    tmp_path: Path, tally: Tally, capfd: pytest.CaptureFixture[str]
) -> None:
    root, report = tmp_path / "data", tmp_path / "report.json"
    for split in ("train", "val"):
        for name in ("good", "bad"):
            (root / split / name).mkdir(parents=True)
    for number, image in enumerate(ODD_IMAGES):
        folder = root / ("train" if number % 2 else "val") / ("bad" if image.pixels is None else "good")
        (folder / f"{image.name}.png").write_bytes(image.content)
    assert main(["data", "check", str(root), "--json", str(report)]) == 1
    findings = json.loads(report.read_text())["findings"]
    unreadable = {one["text"].partition(": ")[0] for one in findings if one["kind"] == "unreadable"}
    expected = {str(file) for file in root.glob("*/bad/*")}
    tally("9", "data check: every bad file of the zoo is reported, and no good one", unreadable == expected)
    assert unreadable == expected and len(expected) == len(BAD)
    assert f"{len(BAD)} error(s)" in capfd.readouterr().out
