"""`metaformer export`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metaformer.deploy.packaging.load import load_package
from metaformer.factory import create_model
from metaformer.weights.hub import save_pretrained

Cli = Callable[..., Any]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    tiny = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "num_classes": 3, "image_size": (64, 64)}
    save_pretrained(create_model("poolformer_s12", **tiny), tmp_path / "net")
    return tmp_path / "net"


@pytest.mark.parametrize(
    ("file", "options", "named"),
    [
        ("net.zip", "", ".pt2"),
        ("net.pt2", "--sizes 20 64", "sizes that vary must begin at 35 pixels"),
        ("net.pt2", "--batch 4 2", "batch is 4 … 2"),
        ("net.pt2", "--sizes 64 96 --image-size 64", "--sizes and --image-size"),
    ],
)
def test_wrong_options_are_named(saved: Path, file: str, options: str, named: str, cli: Cli) -> None:
    assert named in cli("export", saved, saved.parent / file, *options.split()).error
    assert [path.name for path in saved.parent.iterdir()] == ["net"]


@pytest.mark.slow
def test_a_file_is_written(saved: Path, cli: Cli) -> None:
    out = saved.parent / "net.pt2"
    result = cli("export", saved, out, "--batch", "1", "4", "--image-size", "96")
    assert result.status == 0 and "trusted=True" in result.out
    assert "1…4 images of 96×96 pixels, float32 on cpu" in result.out
    assert "compiling, which takes a minute" in result.err
    network = load_package(out, trusted=True)
    assert network.metadata["task"] == "classify" and network.metadata["preprocess"]["image_size"] == 96
    assert network(torch.zeros(2, 3, 96, 96)).shape == (2, 3)
