import pytest

from metaformer.training import progress
from metaformer.training.progress import Progress, clock


def test_without_a_terminal_lines_tell_step_rate_time_left_and_figures(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    shown = Progress(total=10, done=4, batch_size=8)
    shown.update({"loss": 1.23456})
    shown.update({"top1": 0.5})
    shown.close()
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].startswith("step 5/10 (50%)") and lines[0].endswith("loss 1.235")
    assert "img/s" in lines[1] and "left" in lines[1] and "loss 1.235 top1 0.5" in lines[1]


def test_data_wait_and_memory_are_shown_as_what_they_are(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    shown = Progress(total=10, done=0, batch_size=8)
    shown.note({"data_wait": 0.0312, "memory_gb": 1.26})
    shown.update({"loss": 2.0}, 3)
    line = capfd.readouterr().err
    assert line.startswith("step 3/10 (30%)")
    assert line.endswith(" left, wait 3% memory 1.3GB loss 2\n")


def test_lines_do_not_come_at_every_step(capfd: pytest.CaptureFixture[str]) -> None:
    shown = Progress(total=1000, done=0, batch_size=8)
    for _ in range(100):
        shown.update({"loss": 1.0})
    assert capfd.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    shown = Progress(total=3, done=0, batch_size=8)
    shown.update({"loss": 2.5})
    shown.say("a line")
    shown.close()
    told = capfd.readouterr().err
    assert "0/3" in told and "a line" in told


def test_other_processes_are_quiet(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    shown = Progress(total=3, done=0, batch_size=8, quiet=True)
    shown.say("hidden")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (61.9, "1:01"), (3661, "1:01:01")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
