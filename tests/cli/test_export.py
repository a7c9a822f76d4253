from pathlib import Path

import pytest
import torch

from metaformer.cli import main
from metaformer.deploy.packaging.packaged import load_package
from metaformer.factory import create_model
from metaformer.weights.hub import save_pretrained

TINY = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "num_classes": 3, "image_size": (64, 64)}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_pretrained(create_model("poolformer_s12", **TINY), tmp_path / "net")
    return tmp_path / "net"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["net.zip"], "a package's name ends in .pt2"),
        (["net.pt2", "--sizes", "20", "64"], "sizes that vary must begin at 35 pixels"),
        (["net.pt2", "--batch", "4", "2"], "batch is 4 … 2"),
        (["net.pt2", "--sizes", "64", "96", "--image-size", "64"], "--sizes and --image-size"),
    ],
)
def test_what_cannot_be(
    saved: Path,
    words: list[str],
    told: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(saved.parent)
    assert main(["export", str(saved), *words]) in (1, 2)
    assert told in capsys.readouterr().err
    assert not list(saved.parent.glob("*.pt2"))


@pytest.mark.slow
def test_a_file_is_written(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = saved.parent / "net.pt2"
    assert main(["export", str(saved), str(out), "--batch", "1", "4", "--image-size", "96"]) == 0
    told = capsys.readouterr()
    assert "1…4 images of 96×96 pixels, float32 on cpu" in told.out and "trusted=True" in told.out
    assert "compiling, which takes a minute" in told.err
    network = load_package(out, trusted=True)
    assert network.metadata["task"] == "classify" and network.metadata["preprocess"]["image_size"] == 96
    assert network(torch.zeros(2, 3, 96, 96)).shape == (2, 3)
