"""Each check of the contract fails where its promise is broken, and says what to do."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metaformer.errors import ConfigError, MissingPackage
from metaformer.mixers import MIXERS
from metaformer.testing import CHECKS, MixerCase, check_mixer

DIM = 8


class Mixer(nn.Module):
    """A 1×1 convolution, which keeps the contract; broken ones derive from it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Narrower(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, 1:]


class EvenWindows(Mixer):
    """2×2 windows without padding."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(F.avg_pool2d(self.conv(x), 2), scale_factor=2)


class AnyGrid(Mixer):
    """Says that it has one grid, and takes every other."""

    def __init__(self, dim: int, grid: tuple[int, int], grid_mode: str = "strict") -> None:
        super().__init__(dim)


class InPlace(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        x += 1
        return self.conv(x)


class OverBatch(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) - x.mean(0)


class Noise(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + torch.randn_like(x)


class Unregistered(Mixer):
    """Its weight is in no state_dict."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.weight = torch.randn(dim, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) * self.weight.to(x)


class Detached(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x).detach()


class HalfGradient(torch.autograd.Function):
    """The double, with the derivative of the input itself."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> Tensor:
        return grad


class WrongBackward(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        return HalfGradient.apply(self.conv(x))


class Promoted(Mixer):
    """float32 whatever the input is."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).float()


class Contiguous(Mixer):
    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).contiguous()


class WrongFused(Mixer):
    def fused(self, x: Tensor, norm: nn.Module, scale: nn.Module) -> Tensor:
        return self(norm(x))


class Branches(Mixer):
    """A choice by value, which no graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if x.sum() > 1e9 else self.conv(x) * 2


class Frequencies(Mixer):
    """A product of frequencies, which the counter does not see."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(self.conv(x)), s=x.shape[-2:])


class FewMacs(Mixer):
    def macs(self, height: int, width: int) -> int:
        return 1


class Cubic(Mixer):
    def macs(self, height: int, width: int) -> int:
        return (height * width) ** 3


class HiddenLoop(Mixer):
    """Takes quadratic time, and says that it is linear."""

    def macs(self, height: int, width: int) -> int:
        return 10**4 * height * width

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        for _ in range(1 if x.is_meta else 4):
            tokens = (tokens @ tokens.transpose(1, 2)).relu() @ tokens
            tokens = tokens / tokens.detach().abs().amax()
        return self.conv(tokens.transpose(1, 2).reshape(x.shape))


class Bessel(Mixer):
    """An operation that ONNX lacks."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.special.bessel_j0(x))


class OtherCompiled(Mixer):
    """Computes something else when it is compiled."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + 1 if torch.compiler.is_compiling() else y


BROKEN: dict[str, tuple[type[nn.Module], str]] = {
    "shape": (Narrower, "(2, 7, 6, 5)"),
    "sizes": (EvenWindows, "1×1"),
    "grid": (AnyGrid, "6×5"),
    "in place": (InPlace, "input"),
    "samples": (OverBatch, "beside another"),
    "determinism": (Noise, "other values"),
    "state": (Unregistered, "state_dict"),
    "gradients": (WrongBackward, "finite differences"),
    "bf16": (Promoted, "torch.float32 for torch.bfloat16"),
    "layout": (Contiguous, "channels-last"),
    "fused": (WrongFused, "fused with"),
    "compile": (OtherCompiled, "compiled by aot_eager"),
    "inductor": (OtherCompiled, "compiled by inductor"),
    "export": (Branches, "data-dependent"),
    "onnx": (Bessel, "bessel"),
    "macs": (Frequencies, "_fft_r2c"),
    "cost": (Cubic, "to the power 3.0"),
    "time": (HiddenLoop, "times the time"),
}
"""A mixer that breaks each promise, and what is said of it."""


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Mixers of a test are known in it alone."""
    monkeypatch.setattr(MIXERS, "_classes", dict(MIXERS._classes))
    monkeypatch.setattr(MIXERS, "_fixed_grid", set(MIXERS._fixed_grid))
    yield


def enter(kind: type[nn.Module]) -> str:
    """Register a mixer; its name."""
    name = kind.__name__
    MIXERS.register(name, fixed_grid=kind is AnyGrid)(kind)
    return name


SLOW = {name: [pytest.mark.slow] if check.slow else [] for name, check in CHECKS.items()}


@pytest.mark.parametrize("check", [pytest.param(name, marks=SLOW[name]) for name in CHECKS])
def test_each_check_can_fail(check: str) -> None:
    kind, said = BROKEN[check]
    with pytest.raises(Exception) as caught:
        CHECKS[check].run(MixerCase(enter(kind), DIM))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "check", "said"),
    [
        (Detached, "gradients", "conv.weight"),
        (FewMacs, "macs", "says 1, but"),
        (Branches, "compile", ""),
        (Noise, "state", "state_dict"),
    ],
)
def test_other_ways_to_fail(kind: type[nn.Module], check: str, said: str) -> None:
    report = check_mixer(enter(kind), dim=DIM, fast=True)
    (failed,) = [result for result in report.failed if result.check == check]
    assert said in failed.reason and failed.remedy == CHECKS[check].remedy
    assert not report.ok and f"{check}: {failed.remedy}" in report.text()
    assert len(failed.reason.splitlines()) == 1


def test_a_mixer_that_keeps_the_contract() -> None:
    steps: list[str] = []
    report = check_mixer(enter(Mixer), dim=DIM, grid=(5, 7), fast=True, on_step=steps.append)
    assert report.ok, report.text()
    assert steps == [name for name, check in CHECKS.items() if not check.slow]
    assert "linear in pixels: 4.0 times for 4 times" in report.text()
    assert report.to_dict()["ok"] and len(report.to_dict()["checks"]) == len(steps)


def test_attention_is_quadratic() -> None:
    assert "quadratic" in (CHECKS["cost"].run(MixerCase("attention", DIM)) or "")


def test_a_missing_package_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*args: object, **options: object) -> None:
        raise MissingPackage("onnx", "onnx", "export")

    monkeypatch.setattr("metaformer.testing.export", lacking)
    monkeypatch.setattr("metaformer.testing.CHECKS", {"onnx": CHECKS["onnx"]})
    (result,) = check_mixer(enter(Mixer), dim=DIM).results
    assert result.status == "skipped" and "metaformer[onnx]" in result.reason


@pytest.mark.parametrize(
    ("mixer", "options", "said"),
    [
        ("poling", {}, "pooling"),
        ("pooling(size=4)", {}, "odd"),
        ("pooling", {"dim": 0}, "dim"),
        ("pooling", {"grid": (0, 3)}, "grid"),
    ],
)
def test_what_cannot_be_built_is_an_error(mixer: str, options: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_mixer(mixer, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [SystemExit(0), ValueError("one\ntwo"), AssertionError(), RecursionError()])
def test_a_mixer_that_ends_the_process_is_not_checked(error: BaseException) -> None:
    class Unbuilt(Mixer):
        def __init__(self, dim: int) -> None:
            raise error

    class Leaving(Mixer):
        def forward(self, x: Tensor) -> Tensor:
            raise error

    with pytest.raises(ConfigError, match=type(error).__name__):
        check_mixer(enter(Unbuilt), dim=DIM)
    report = check_mixer(enter(Leaving), dim=DIM, fast=True)
    assert {"shape", "sizes", "samples", "gradients"} <= {result.check for result in report.failed}
    assert type(error).__name__ in report.failed[0].reason


OWN = """
from metaformer.mixers import MIXERS
from torch import nn

@MIXERS.register("own_rows")
class Rows(nn.Module):
    def __init__(self, dim: int, size: int = 3) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d((1, size), 1, (0, size // 2))

    def forward(self, x):
        return self.pool(x){}
"""


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from metaformer.cli import main

    file = tmp_path / "own.py"
    file.write_text(OWN.format(""))
    saved = tmp_path / "report.json"
    assert main(["check-mixer", f"{file}:own_rows(size=5)", "--fast", "--dim=8", f"--json={saved}"]) == 0
    assert "checks passed" in capsys.readouterr().out and '"ok": true' in saved.read_text()
    assert main(["check-mixer", str(file), "--fast"]) == 2
    assert f"{file}:NAME" in capsys.readouterr().err
    assert main(["check-mixer", f"{tmp_path / 'none.py'}:own_rows"]) == 1
    assert "none.py: there is no such" in capsys.readouterr().err
    assert main(["check-mixer", f"{file}:own_row"]) == 1
    error = capsys.readouterr().err
    assert "did you mean own_rows" in error and "--import" not in error


def test_the_command_ends_with_1_where_a_check_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from metaformer.cli import main

    file = tmp_path / "own.py"
    file.write_text(OWN.format(".contiguous().mul_(2)[:, :, :1]"))
    assert main(["check-mixer", f"{file}:own_rows", "--fast", "--dim=8"]) == 1
    out = capsys.readouterr().out
    assert "shape        failed" in out and CHECKS["shape"].remedy in out
    assert "mend the first one first" in out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("while True: pass", "reading and building it"),
        (OWN.format(" if self.training else loop()"), "'shape'"),
    ],
)
def test_the_command_ends_where_a_check_does_not(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(f"{text}\n\ndef loop():\n    while True:\n        pass\n")
    command = [sys.executable, "-m", "metaformer", "check-mixer", f"{file}:own_rows", "--timeout=2"]
    done = subprocess.run(command, capture_output=True, text=True)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and not done.stdout
    assert line.startswith("metaformer: error: check-mixer: own_rows: ") and line.endswith(
        "--timeout allows more"
    )
    assert f"{said} takes more than 2 s" in line


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_time_that_cannot_be(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    from metaformer.cli import main

    assert main(["check-mixer", "pooling", f"--timeout={value}"]) == 2
    assert "--timeout" in capsys.readouterr().err
