"""The installed wheel, used as a practitioner would: own folder, published checkpoint, three commands."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metaformer import convert, create_model, save_pretrained

ROOT = Path(__file__).parent.parent


LARGEST = 12_000_000
"""Bytes of the wheel, at most."""
PYTHONS = ("3.11", "3.13")
"""The lowest and the highest Python that the library is made for."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution."""
    dist = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, ROOT]
    subprocess.run(build, check=True, capture_output=True)
    assert len(list(dist.glob("metaformer-*.tar.gz"))) == 1
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the built wheel's contents and nothing else."""
    site = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", site, wheel]
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


def test_it_holds_the_package_alone_and_is_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        folders = {name.partition("/")[0] for name in archive.namelist()}
    assert folders == {"metaformer", wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"}
    assert wheel.stat().st_size <= LARGEST


def find_python(version: str) -> str | None:
    """An interpreter of this version: on the path, or of pyenv."""
    candidates = [shutil.which(f"python{version}")]
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True).stdout.strip()
        candidates += map(str, sorted(Path(root, "versions").glob(f"{version}.*/bin/python")))
    ask = ["-c", "import sys, venv; print('{}.{}'.format(*sys.version_info))"]
    for found in filter(None, candidates):  # a shim of pyenv may stand for none
        if subprocess.run([found, *ask], capture_output=True, text=True).stdout.strip() == version:
            return found
    return None


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("version", PYTHONS)
def test_the_quickstart_in_a_bare_python(version: str, wheel: Path, tmp_path: Path) -> None:
    interpreter = find_python(version)
    if interpreter is None:
        pytest.skip(f"no Python {version} here")
    subprocess.run([interpreter, "-m", "venv", tmp_path / "env"], check=True)
    programs, folder = tmp_path / "env/bin", tmp_path / "work"
    folder.mkdir()
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    variables |= {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "METAFORMER_HOME": str(tmp_path)}

    def do(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    do("pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt", f"{wheel}[demo]")
    told = do("metaformer", "doctor")
    assert f"{version}." in told and "all that is installed works" in told
    assert do("python", "-c", "import metaformer; print(metaformer.__file__)").startswith(str(tmp_path))
    for page in (ROOT / "README.md", ROOT / "docs/quickstart.md"):
        blocks = re.findall(r"^```(sh|python)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
        do("bash", "-ec", "".join(text for language, text in blocks if language == "sh"))
        do("python", "-c", "".join(text for language, text in blocks if language == "python"))
    shutil.rmtree(tmp_path / "env")  # gigabytes
