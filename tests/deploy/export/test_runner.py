"""The program that is written beside an exported file, against `metaformer predict`."""

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer import create_detector, create_model, create_segmenter, export
from metaformer.cli import main
from metaformer.data.class_lists import palette
from metaformer.errors import ConfigError
from toys import TINY

CONSTRAINTS = Path(__file__).parents[3] / "constraints.txt"
CLASSES = ('"quoted" ant, red', "пчела", "=кошка 猫")
FILES: dict[str, dict[str, Any]] = {
    "classify": {},
    "multilabel": {"input": "float", "batch": 3},
    "segment": {},
    "segment-probabilities": {"probabilities": True, "batch": 2},
    "detect": {},
}
"""Options of the file of each task."""
CLEAN = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "metaformer", "timm", "onnx"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import runpy
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a program where PyTorch and this library cannot be imported."""


def network(task: str) -> Any:
    torch.manual_seed(0)
    more: dict[str, Any] = {}
    if task in ("classify", "multilabel"):
        model: Any = create_model("poolformer_n", num_classes=3, **TINY)
        more = {"input_size": (3, 64, 64), "task": task, "thresholds": (0.4, 0.5, 0.45)}
        more["background"] = (10, 200, 30)
    elif task == "detect":
        backbone = create_model("poolformer_n", **TINY).config
        model = create_detector("mask_rcnn", backbone, 3, fpn_dim=16, box_fc_dim=32, rpn_pre_nms_topk=50)
        box = {"long_side": 128, "short_side": 96, "background": (10, 200, 30)}
        more = {"preprocess": box, "category_ids": (1, 2, 3), "score": 0.2, "palette": palette(4)[1:]}
    else:
        backbone = create_model("poolformer_n", **TINY).config
        model = create_segmenter("semantic_fpn", backbone, 3, fpn_dim=16, head_dim=16)
        more = {"preprocess": {"long_side": 128, "short_side": 96}, "palette": palette(3)}
    kinds = torch.nn.Linear if task == "detect" else torch.nn.Linear | torch.nn.Conv2d
    for module in model.modules():  # results should differ between images
        if isinstance(module, kinds):
            torch.nn.init.kaiming_normal_(module.weight)
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": CLASSES, **more}
    return model.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file for each of `FILES`, and `run.py`."""
    place = tmp_path_factory.mktemp("exported")
    for name, options in FILES.items():
        file = place / f"{name}.onnx"
        export(network(name.partition("-")[0]), file, runner=place, triton=place / "models", **options)
    return place


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes and forms, an animation, and a hidden one."""
    place, random = tmp_path_factory.mktemp("images"), np.random.RandomState(0)

    def noise(height: int, width: int, channels: int = 3) -> Image.Image:
        small = random.randint(0, 256, (height // 8, width // 8, channels), dtype=np.uint8)
        return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)

    (place / "below").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    noise(80, 120).save(place / "turned.jpg", exif=exif)
    for name, size in (("wide.png", (72, 200)), ("tall.png", (131, 64)), ("below/same.png", (72, 200))):
        noise(*size).save(place / name)
    noise(96, 96, 4).save(place / "clear.png")
    noise(96, 96).quantize(16).save(place / "palette.png", transparency=3)
    Image.fromarray(random.randint(0, 65536, (64, 80)).astype(np.uint16)).save(place / "sixteen.png")
    frames = [noise(64, 96) for _ in range(3)]
    frames[0].save(place / "clip.webp", save_all=True, append_images=frames[1:], lossless=True)
    noise(64, 64).save(place / ".hidden.png")
    return place


def run(
    exported: Path, *words: object, python: Sequence[str] = (sys.executable, "-c", CLEAN)
) -> subprocess.CompletedProcess[str]:
    command = [*python, str(exported / "run.py"), *map(str, words)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120
    )


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def assert_near(found: Any, expected: Any) -> None:
    """Compare plain values: numbers to 1e-4, all others exactly."""
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    if isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_near(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-4)
    else:
        assert found == expected


def table(file: Path) -> list[list[Any]]:
    """Rows of a table, scores as numbers."""
    rows = csv.reader(file.read_text(encoding="utf-8").splitlines())
    return [[float(cell) if cell.startswith(("0.", "1.")) else cell for cell in row] for row in rows]


@pytest.fixture(scope="module")
def three_packages(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has numpy, Pillow and ONNX Runtime."""
    place = tmp_path_factory.mktemp("environment")
    python = str(place / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    command = [python, "-m", "pip", "install", "-q", "-c", CONSTRAINTS, "numpy", "pillow", "onnxruntime"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "Retrying" in done.stderr:
        pytest.skip("pip reaches no index")
    assert done.returncode == 0, done.stderr
    return python


@pytest.mark.slow
@pytest.mark.parametrize("task", FILES)
def test_an_environment_of_three_packages_suffices(
    exported: Path, images: Path, three_packages: str, tmp_path: Path, task: str
) -> None:
    file, suffix = exported / f"{task}.onnx", ".csv" if task in ("classify", "multilabel") else ".jsonl"
    theirs, ours = tmp_path / f"theirs{suffix}", tmp_path / f"ours{suffix}"
    if suffix == ".csv":
        assert main(["predict", str(file), str(images), "--out", str(theirs)]) == 0
    else:
        assert main(["predict", str(file), str(images), "--out", str(tmp_path / "folder")]) == 0
        theirs = tmp_path / "folder" / "predictions.jsonl"
    done = run(exported, file, images, "--out", ours, python=[three_packages])
    assert done.returncode == 0 and not done.stderr, done.stderr
    if suffix == ".csv":
        assert_near(table(ours), table(theirs))
    else:
        expected = [{key: one[key] for key in one if key != "mask"} for one in lines(theirs.read_text())]
        assert_near(lines(ours.read_text()), expected)


def test_a_long_strip_fills_no_memory(exported: Path, tmp_path: Path) -> None:
    """A PNG of a kilobyte; resized to the shorter side before its crop it has gigapixels."""
    for name, size in (("tall.png", (1, 200_000)), ("wide.png", (200_000, 1))):
        Image.new("RGB", size, (9, 99, 200)).save(tmp_path / name)
    limited = "import resource; resource.setrlimit(resource.RLIMIT_AS, (4 << 30,) * 2)" + CLEAN
    for task in ("classify", "detect", "segment"):
        words = (exported / f"{task}.onnx", tmp_path / "tall.png", tmp_path / "wide.png")
        out = tmp_path / task
        done = run(exported, *words, "--out", out, "--draw", python=(sys.executable, "-c", limited))
        assert done.returncode == 0, done.stderr
        assert len(lines((out / "predictions.jsonl").read_text())) == 2
        for file in (out / "images").iterdir():
            with Image.open(file) as image:
                assert image.width * image.height < 30_000_000


@pytest.mark.parametrize("task", FILES)
def test_the_lines_are_those_of_metaformer_predict(
    exported: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    file, theirs, ours = exported / f"{task}.onnx", tmp_path / "theirs", tmp_path / "ours"
    assert main(["predict", str(file), str(images), "--out", str(theirs)]) == 0
    done = run(exported, file, images, "--out", ours, "--draw")
    assert done.returncode == 0 and not done.stderr, done.stderr
    expected = lines((theirs / "predictions.jsonl").read_text())
    assert len(expected) == (8 if task in ("classify", "multilabel") else 10)
    assert_near(lines((ours / "predictions.jsonl").read_text()), expected)
    written = sorted(file.relative_to(theirs) for file in theirs.rglob("*.*"))
    assert written == sorted(
        file.relative_to(ours) for file in ours.rglob("*.*") if "images" not in file.parts
    )
    assert len(list((ours / "images").glob("*.jpg"))) == len(expected)
    for name in written:
        if name.suffix == ".png":
            with Image.open(theirs / name) as one, Image.open(ours / name) as other:
                assert one.mode == other.mode and one.getpalette() == other.getpalette()
                assert np.array_equal(np.asarray(one), np.asarray(other)), name
        elif name.suffix == ".csv":
            assert_near(table(ours / name), table(theirs / name))
    capsys.readouterr()
    assert main(["predict", str(file), str(images)]) == 0
    assert_near(lines(run(exported, file, images).stdout), lines(capsys.readouterr().out))


def test_a_result_is_found_in_each_form(exported: Path, images: Path, tmp_path: Path) -> None:
    """The images of these tests have objects, and label maps of several classes."""
    found = lines(run(exported, exported / "detect.onnx", images).stdout)
    assert sum(len(line["objects"]) for line in found) > 20
    fewer = lines(run(exported, exported / "detect.onnx", images, "--score", 0.6).stdout)
    assert sum(len(line["objects"]) for line in fewer) < sum(len(line["objects"]) for line in found)
    found = lines(run(exported, exported / "segment.onnx", images).stdout)
    assert max(len(line["classes"]) for line in found) > 1


def test_the_file_is_also_in_the_repository(exported: Path) -> None:
    for name in FILES:
        model = exported / "models" / name
        assert (model / "1" / "model.onnx").read_bytes() == (exported / f"{name}.onnx").read_bytes()
        assert (model / "labels.txt").read_text().splitlines() == list(CLASSES)


def test_a_runner_computes_onnx_files_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"runner: run\.py .* \.onnx"):
        export(network("classify"), tmp_path / "network.xml", runner=tmp_path / "run")
    assert not list(tmp_path.rglob("*.*"))
    for option in ("--runner", "--triton"):
        assert main(["export", "poolformer_n", str(tmp_path / "network.pt2"), option, str(tmp_path)]) == 2
        assert f"{option}: no option of a .pt2 file" in capsys.readouterr().err


def test_what_cannot_be_read_is_named(exported: Path, images: Path, tmp_path: Path) -> None:
    file = exported / "classify.onnx"
    bad, good, out = tmp_path / "bad.png", images / "wide.png", tmp_path / "out.jsonl"
    bad.write_bytes(good.read_bytes()[:500])
    done = run(exported, file, bad, good, "--out", out)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and f"error: {bad}: " in done.stderr
    assert [line["path"] for line in lines(out.read_text())] == [str(good)]

    damaged, text = tmp_path / "damaged.onnx", tmp_path / "text.onnx"
    content = bytearray(file.read_bytes())
    content[content.index(b"pytorch") + 1] ^= 1
    damaged.write_bytes(content)
    text.write_text("no network")
    cases = [
        ((file, tmp_path / "missing.png"), "missing.png: no such file"),
        ((tmp_path / "missing.onnx", good), "missing.onnx: No such file"),
        ((tmp_path / "network.xml", good), "network.xml: .* .onnx"),
        ((text, good), "text.onnx: onnxruntime cannot read it"),
        ((damaged, good), "damaged.onnx: its content is not what its metadata say"),
        ((exported / "detect.onnx", good, "--out", tmp_path / "x.csv"), "x.csv: .* no table"),
        ((file, good, "--draw"), "--draw needs --out"),
        ((file, good, "--score", 2), "--score must lie between 0 and 1"),
        ((file, good, "--score", 0.5), "--score: no option of this task"),
    ]
    for words, message in cases:
        done = run(exported, *words)
        last = done.stderr.splitlines()[-1]
        assert done.returncode and "Traceback" not in done.stderr, done.stderr
        assert re.search(message, last), last
