"""`metaformer explain`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def photo(demo: Path) -> Path:
    return sorted((demo / "classify" / "val").rglob("*.png"))[0]


def test_sheets_of_images(untrained: dict[str, Path], photo: Path, cli: Cli, tmp_path: Path) -> None:
    status, out, _ = cli(
        "explain", untrained["classify"], photo, "--out", tmp_path / "out", "--count=1", "--stage=1"
    )
    assert status == 0 and f"page: {tmp_path / 'out' / 'index.html'}" in out
    (line,) = map(json.loads, (tmp_path / "out" / "explained.jsonl").read_text().splitlines())
    assert len(line["subjects"]) == 1 and Path(line["sheet"]).is_file()
    chosen = cli("explain", untrained["classify"], photo, "--out", tmp_path / "two", "--classes=3,5")
    assert chosen.status == 0
    line = json.loads((tmp_path / "two" / "explained.jsonl").read_text())
    assert [one["label"] for one in line["subjects"]] == ["3", "5"]


def test_an_image_that_is_left_out(untrained: dict[str, Path], photo: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8 nothing")
    args = ("explain", untrained["classify"], tmp_path / "bad.jpg", photo, "--out", tmp_path / "out")
    assert "bad.jpg" in cli(*args).error
    result = cli(*args, "--on-bad-image=skip")
    assert result.status == 0 and "left out 1 images that cannot be read" in result.err
    assert "1 sheets" in result.out


def test_the_receptive_field(untrained: dict[str, Path], photo: Path, cli: Cli, tmp_path: Path) -> None:
    status, out, _ = cli(
        "explain", untrained["classify"], photo, "--receptive-field", "--out", tmp_path, "--side=96"
    )
    assert status == 0 and "random weights" in out and "trained weights" in out and "99%" in out
    assert f"image: {tmp_path / 'receptive-field.png'}\nnumbers: {tmp_path / 'receptive-field.json'}" in out
    values = json.loads((tmp_path / "receptive-field.json").read_text())
    assert values["side"] == 96 and len(values["squares"]["trained weights"]) == 4
    with Image.open(tmp_path / "receptive-field.png") as image:
        assert image.format == "PNG"
    noise = cli("explain", untrained["classify"], "--receptive-field", "--side=64", "--samples=1")
    assert noise.status == 0 and "1 images of noise" in noise.out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("RUN PHOTO", "explain: name images to explain, and the folder to write to with --out"),
        ("RUN --out OUT", "explain: name images to explain"),
        ("RUN nothing.jpg --out OUT", "nothing.jpg: no such file or folder"),
        ("RUN PHOTO --out OUT --classes seven", "unknown class 'seven'"),
        ("RUN PHOTO --out OUT --stage 7", "stage 7: the network has stages 0 … 3"),
        ("RUN PHOTO --out OUT --box 1,2,3", "box is [1.0, 2.0, 3.0]: give left, top, right and bottom"),
        ("RUN PHOTO --out OUT --box 1,2,30,40", "box: no option of image classification"),
        ("RUN PHOTO --out OUT --count 0", "count is 0"),
        ("RUN PHOTO --out OUT --layer 3", "unknown option --layer"),
        ("RUN PHOTO --out OUT --side 512", "--side: no option without --receptive-field"),
        ("RUN --receptive-field --count 2", "--count: no option beside --receptive-field"),
        ("RUN --receptive-field --side 2", "side is 2: poolformer_n needs at least 3 pixels"),
        ("nowhere PHOTO --out OUT", "unknown model 'nowhere'"),
    ],
)
def test_what_cannot_be_is_one_line(
    args: str, message: str, untrained: dict[str, Path], photo: Path, cli: Cli, tmp_path: Path
) -> None:
    names = {"RUN": untrained["classify"], "PHOTO": photo, "OUT": tmp_path / "out"}
    assert message in cli("explain", *(names.get(word, word) for word in args.split())).error
    assert not (tmp_path / "out" / "index.html").exists()


def test_without_captum_the_extra_is_named(
    untrained: dict[str, Path], photo: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    result = cli("explain", untrained["classify"], photo, "--out", tmp_path / "out")
    assert "needs captum: pip install 'metaformer[explain]'" in result.error
    assert not (tmp_path / "out" / "explained.jsonl").exists()
