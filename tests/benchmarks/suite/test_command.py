"""The command line of the suite."""

import subprocess
import sys

import pytest

from benchmarks.program import run_program
from benchmarks.suite import command


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("benchmarks.suite", command, ["--list", "--device", "cpu", "--rows", "caformer"]) == 0
    text = capsys.readouterr().out
    assert "cpu-caformer_s18-inference-fp32-b8" in text and "≥ 1.2 ×" in text and "timm openvino" in text
    assert run_program("benchmarks.suite", command, ["--list", "--device", "cpu", "--grid"]) == 0
    text = capsys.readouterr().out
    assert "cpu-randformer_s12-training-bf16-b64-grid" in text and "no one" in text


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (["--rows", "resnet"], 1, "unknown row 'resnet'"),
        (["--rounds", "0"], 1, "rounds: 0 must be at least 1"),
        (["--rounds", "few"], 2, "few"),
        (["--round", "3"], 2, "did you mean --rounds"),
        (["--device", "abacus"], 2, "abacus"),
    ],
)
def test_bad_words(words: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program("benchmarks.suite", command, [*words]) == status
    captured = capsys.readouterr()
    assert told in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_as_a_module_on_a_bare_machine() -> None:
    script = """
import runpy, sys
for name in ("timm", "torchvision", "huggingface_hub", "matplotlib", "jsonargparse", "PIL", "tqdm", "yaml"):
    sys.modules[name] = None
sys.argv = ["bench", *sys.argv[1:]]
runpy.run_module("benchmarks.suite", run_name="__main__", alter_sys=True)
"""
    words = [sys.executable, "-c", script, "--list", "--device=cpu"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "cpu-poolformer_s12-training-fp32-b8" in done.stdout, done.stderr
    done = subprocess.run([*words, "--rows=resnet"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "unknown row" in done.stderr and "Traceback" not in done.stderr
