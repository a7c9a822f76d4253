"""The benchmarks as programs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import loading
from benchmarks.original_cyclemlp import FORMS, original
from benchmarks.program import run_program
from benchmarks.suite import __main__ as suite
from metaformer.backbones.metaformer import MetaFormer
from metaformer.errors import ConfigError
from metaformer.factory import create_model

LOADING = ["--images=4", "--batch=4", "--size=32", "--workers=0", "--rounds=1", "--device=cpu"]
LOADING += ["--pipelines", "evaluation", "--model-speed", "5"]
BARE = """
import json, runpy, sys
for name in ("timm", "torchvision", "huggingface_hub", "matplotlib", "jsonargparse", "PIL", "tqdm", "yaml"):
    sys.modules[name] = None
for args in json.loads(sys.argv[1]):
    sys.argv = list(args)
    status = 0
    try:
        runpy.run_module(args[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code
    for stream in (sys.stdout, sys.stderr):
        print(f"status {status}", file=stream, flush=True)
"""
"""Runs modules one after the other."""


def run(program: str, *args: str) -> int:
    module = suite if program == "suite" else loading
    return run_program(
        f"benchmarks.{program}", module.DESCRIPTION, module.EXAMPLE, module.add_options, module.run, args
    )


def test_loading_writes_text_and_json(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--root", str(images), *LOADING]
    assert run("loading", *args, "--json", str(tmp_path / "data.json")) == 0
    text = capsys.readouterr().out
    assert "evaluation: resize" in text and "torchvision tensors" in text and str(images) in text
    values = json.loads((tmp_path / "data.json").read_text())
    assert values["model_images_per_second"] == 5
    assert run("loading", *args, "--json", "-") == 0
    assert json.loads(capsys.readouterr().out).keys() == values.keys()


def test_the_suite_lists_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("suite", "--list", "--device", "cpu", "--rows", "caformer") == 0
    text = capsys.readouterr().out
    assert "cpu-caformer_s18-inference-fp32-b8" in text and "≥ 1.2 ×" in text and "timm openvino" in text
    assert run("suite", "--list", "--device", "cpu", "--grid") == 0
    assert "cpu-randformer_s12-training-fp32-b64-grid" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("program", "args", "status", "message"),
    [
        ("suite", ["--rows", "resnet"], 1, "resnet"),
        ("suite", ["--rounds", "0"], 1, "rounds"),
        ("suite", ["--rounds", "few"], 2, "few"),
        ("suite", ["--round", "3"], 2, "--rounds"),
        ("suite", ["--device", "abacus"], 2, "abacus"),
        ("loading", ["--pipelines", "trian"], 1, "did you mean train"),
        ("loading", ["--images", "7"], 1, "images"),
        ("loading", ["--worker", "3"], 2, "--workers"),
        ("loading", ["--root", "nowhere"], 1, "nowhere"),
    ],
)
def test_an_error_is_one_line(
    program: str, args: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(program, *args) == status
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out


def test_on_a_bare_machine() -> None:
    cases = [
        (["benchmarks.suite", "--list", "--device=cpu"], "0", "cpu-poolformer_s12-training-fp32-b8"),
        (["benchmarks.suite", "--rows=resnet"], "1", "unknown row"),
        (["benchmarks.loading"], "1", "needs timm and torchvision: pip install"),
    ]
    command = [sys.executable, "-c", BARE, json.dumps([args for args, _, _ in cases])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    printed = [re.split(r"^status (.*)\n", text, flags=re.MULTILINE) for text in (done.stdout, done.stderr)]
    assert [parts[1::2] for parts in printed] == [[status for _, status, _ in cases]] * 2, done
    for out, err, (_, _, message) in zip(*(parts[::2] for parts in printed), cases, strict=False):
        assert message in out + err, err
    assert done.returncode == 0 and "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def model() -> MetaFormer:
    torch.manual_seed(0)
    tiny = {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 20), "image_size": (64, 64)}
    return create_model("cyclemlp_b1", num_classes=10, **tiny).double()


def images() -> Tensor:
    return torch.randn(2, 3, 68, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("form", FORMS)
def test_the_same_logits_and_gradients(model: MetaFormer, form: str) -> None:
    other = original(model, form)
    ours, theirs = model(images()), other(images())
    torch.testing.assert_close(theirs, ours)
    model.zero_grad()
    ours.square().sum().backward()
    theirs.square().sum().backward()
    torch.testing.assert_close(other.stem.weight.grad, model.stem.conv.weight.grad)


def test_weights_are_its_own(model: MetaFormer) -> None:
    shared = {id(p) for p in model.parameters()} & {id(p) for p in original(model).parameters()}
    assert not shared


def test_other_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="CycleMLP is needed"):
        original(create_model("poolformer_n"))
