"""The installed wheel, used as a practitioner would: own folder, published checkpoint, three commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer import convert, create_model, save_pretrained

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the built wheel's contents and nothing else."""
    dist, site = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("site")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", dist, ROOT],
        check=True,
        capture_output=True,
    )
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--quiet",
        "--target",
        site,
        *dist.glob("*.whl"),
    ]
    subprocess.run(pip, check=True)
    return site


CALLS = """
import sys
from metaformer.cli import main
for command in sys.argv[1:]:
    print("$", command)
    if main(command.split()):
        sys.exit(f"failed: {command}")
"""


def run(installed: Path, folder: Path, *args: str) -> str:
    """Output of `python ARGS`."""
    environment = {**os.environ, "PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *args],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_own_folder_and_published_checkpoint(installed: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for level, name in enumerate(("dark", "gray", "light")):
            (tmp_path / "own" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 40, (40, 48, 3)) + 90 * level
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "own" / split / name / f"{i}.jpg")
    save_pretrained(create_model("poolformer_n"), tmp_path / "ours")
    convert(
        tmp_path / "ours" / "model.safetensors", tmp_path / "published.pth.tar", "poolformer", "poolformer_n"
    )
    assert "network.0.0.norm1.weight" in torch.load(tmp_path / "published.pth.tar", weights_only=True)

    assert run(installed, tmp_path, "-m", "metaformer", "--version").startswith("metaformer ")
    model = "--model.name poolformer_n --model.checkpoint published.pth.tar"
    small = "--data.image_size 32 --data.batch_size 6 --data.workers 0 --schedule.epochs 2"
    commands = [
        f"train finetune --data.root own --out run {model} {small}",
        "evaluate run --json report.json",
        "predict run own/val/light --out out.csv --draw",
    ]
    _, _, evaluated, _ = run(installed, tmp_path, "-c", CALLS, *commands).split("$ ")
    assert evaluated.startswith("evaluate") and "top-1" in evaluated
    per_class = json.loads((tmp_path / "report.json").read_text())["per_class"]
    assert [row["name"] for row in per_class] == ["dark", "gray", "light"]
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 4
    assert (tmp_path / "run" / "report.html").is_file()


def test_sources_of_the_kernels_are_in_it(installed: Path) -> None:
    folder = "metaformer/ops/cpp"
    there = {path.name for path in (ROOT / "src" / folder).iterdir() if path.suffix in (".cpp", ".h")}
    assert there and there <= {path.name for path in (installed / folder).iterdir()}
