"""The command line of the loaders' benchmark."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.loading import command
from benchmarks.program import run_program

FEW = ["--images=4", "--batch=4", "--size=32", "--workers=0", "--rounds=1", "--device=cpu"]
ONE = [*FEW, "--pipelines", "evaluation", "--model-speed", "5"]

# timm leaves files open, and torchvision's decoder is to leave for another package
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning"),
]


def test_page_and_json(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--root", str(images), *ONE]
    assert run_program("benchmarks.loading", command, [*words, "--json", str(tmp_path / "data.json")]) == 0
    text = capsys.readouterr().out
    assert "evaluation: resize" in text and "torchvision tensors" in text and str(images) in text
    values = json.loads((tmp_path / "data.json").read_text())
    assert values["model_images_per_second"] == 5
    assert run_program("benchmarks.loading", command, [*words, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == values.keys()


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--pipelines", "trian"], 1, "unknown pipeline 'trian': did you mean train"),
        (["--images", "7"], 1, "7 do not fill one batch of 64"),
        (["--worker", "3"], 2, "did you mean --workers"),
        (["--root", "nowhere"], 1, "nowhere"),
    ],
)
def test_bad_words(words: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("benchmarks.loading", command, [*words]) == status
    captured = capsys.readouterr()
    assert told in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_a_bare_machine_is_told_what_to_install() -> None:
    script = """
import runpy, sys
for name in ("timm", "torchvision", "huggingface_hub", "matplotlib", "jsonargparse", "PIL", "tqdm", "yaml"):
    sys.modules[name] = None
sys.argv = ["bench"]
runpy.run_module("benchmarks.loading", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "needs timm and torchvision: pip install" in done.stderr, done.stderr
