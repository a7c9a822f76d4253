import time

import pytest
import torch

from metaformer.training import progress
from metaformer.training.progress import Meter, Progress, format_time, peak_memory


def test_means_are_over_the_steps_that_have_the_metric() -> None:
    meter = Meter()
    meter.update({"loss": 1.0, "grad_norm": 4.0, "lr": 0.5})
    meter.update({"loss": 3.0, "lr": 0.5})  # a step that overflowed has no norm
    time.sleep(0.01)
    meter.waited = meter.seconds / 2
    means = meter.means(ranks=1)
    assert meter.steps == 2
    assert (means["loss"], means["grad_norm"], means["lr"]) == (2.0, 4.0, 0.5)
    assert 0 < means["data_wait"] <= 0.5


def test_peak_memory_is_that_of_this_process_in_gib() -> None:
    before = peak_memory(torch.device("cpu"))
    block = torch.ones(1 << 28, dtype=torch.uint8)
    assert 0.05 < before < 64
    assert peak_memory(torch.device("cpu")) >= max(before, block.numel() / 2**30)


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)


@pytest.mark.usefixtures("every_step")
def test_lines_without_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    shown = Progress(total=10, done=4, batch_size=8)
    shown.update({"loss": 1.23456})
    shown.set_postfix({"data_wait": 0.0312, "memory_gb": 1.26})
    shown.update({"top1": 0.5}, 3)
    shown.close()
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("step 5/10 (50%)") and first.endswith("loss 1.235")
    assert second.startswith("step 8/10 (80%)") and "img/s" in second
    assert second.endswith(" left, loss 1.235 wait 3% memory 1.3GB top1 0.5")


def test_lines_are_printed_at_intervals(capfd: pytest.CaptureFixture[str]) -> None:
    shown = Progress(total=1000, done=0, batch_size=8)
    for _ in range(100):
        shown.update({"loss": 1.0})
    assert capfd.readouterr().err == ""


def test_a_bar_on_a_terminal(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    shown = Progress(total=3, done=0, batch_size=8)
    shown.update({"loss": 2.5})
    shown.write("a line")
    shown.close()
    printed = capfd.readouterr().err
    assert "0/3" in printed and "a line" in printed


@pytest.mark.usefixtures("every_step")
def test_quiet_processes_print_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    shown = Progress(total=3, done=0, batch_size=8, quiet=True)
    shown.write("hidden")
    shown.update({"loss": 2.5})
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.9, "1:01"), (3661, "1:01:01")])
def test_format_time(seconds: float, text: str) -> None:
    assert format_time(seconds) == text
