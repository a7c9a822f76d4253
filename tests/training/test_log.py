"""Logs, progress and reports of a run."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from metaformer.checkpoint.run_dir import read_log
from metaformer.data.shards.write import write_shards
from metaformer.errors import MissingPackage, OutputError, WeightsError
from metaformer.serialize import to_dict
from metaformer.tasks.base import Forward
from metaformer.tasks.classification.task import ClassificationTask
from metaformer.tasks.report import Report
from metaformer.training import progress
from metaformer.training.check import check_config
from metaformer.training.log import MetricsLog, WandbLog
from metaformer.training.progress import Meter, Progress, format_time, peak_memory
from metaformer.training.report import write_report
from metaformer.training.train import train
from toys import Configure
from warm import python


def test_lines_are_appended_and_a_resumed_run_replaces_the_steps_it_repeats(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, print) as log:
        for step in (1, 2, 3):
            log.write("train", step, 0, {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as stream:
        stream.write('{"kind": "tra')  # a killed process
    with MetricsLog(tmp_path, print) as log:
        log.write("resume", 2, 0)
        log.write("train", 3, 0, {"loss": 30.0})
    lines = read_log(tmp_path)
    assert [(line["kind"], line["step"]) for line in lines] == [
        ("train", 1), ("train", 2), ("resume", 2), ("train", 3),
    ]  # fmt: skip
    assert lines[-1]["loss"] == 30.0
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6


def test_tensorboard_has_the_same_metrics(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with MetricsLog(tmp_path, print) as log:
        log.write("eval", 7, 1, {"top1": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("eval/top1")] == [(7, 0.5)]


def test_without_tensorboard_a_line_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    lines: list[str] = []
    with MetricsLog(tmp_path, lines.append) as log:
        log.write("train", 1, 0, {"loss": 1.0})
    assert len(lines) == 1 and "metaformer[log]" in lines[0]
    assert read_log(tmp_path)[0]["loss"] == 1.0


def test_a_line_that_is_not_text_is_skipped(tmp_path: Path) -> None:
    lines = b'{"kind": "train", "step": 1}', b"\xff\xfe", b'{"kind": "eval", "step": 2}'
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines))
    assert [line["step"] for line in read_log(tmp_path)] == [1, 2]


TRAIN = """
import json, sys
from pathlib import Path
from metaformer.config import TrainConfig
from metaformer.serialize import from_dict
from metaformer.training.train import train
train(from_dict(TrainConfig, json.loads(Path(sys.argv[1]).read_text())), sys.argv[2], sys.argv[3] or None)
"""


def start(
    config: Path, out: Path, resume: str = "", **environment: str
) -> "subprocess.CompletedProcess[str]":
    """Train in another process: wandb leaves threads behind."""
    words = [*python(), "-c", TRAIN, str(config), str(out), resume]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    env = {**kept, "HOME": str(out.parent), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(words, env=env, capture_output=True, text=True, timeout=120, check=False)


def stored(run: Path) -> list[bytes]:
    """The offline files of each session."""
    files = sorted((run / "wandb").glob("offline-run-*/*.wandb"))
    return [file.read_bytes() for file in files]


def test_offline_runs_are_stored_in_the_run_directory(
    configure: Configure, tmp_path: Path, digest: Callable[[Path], dict[str, torch.Tensor]]
) -> None:
    pytest.importorskip("wandb")
    file, out, plain = tmp_path / "config.json", tmp_path / "run", tmp_path / "plain"
    for epochs in (1, 2):
        config = configure(schedule={"epochs": epochs}, runtime={"wandb": "digits"})
        file.write_text(json.dumps(to_dict(config)))
        done = start(file, out, "auto", WANDB_MODE="offline")
        assert done.returncode == 0, done.stderr
        train(configure(schedule={"epochs": epochs}), plain, "auto")
    sessions = stored(out)
    name = (out / "wandb/id.txt").read_text().strip().encode()
    assert len(sessions) == 2
    for session in sessions:
        assert name in session and b"digits" in session  # the same wandb run
        assert b"train/loss" in session and b"eval/top1" in session and b"poolformer_n" in session
    one, other = (digest(run / "checkpoints/step_8") for run in (out, plain))
    assert one.keys() == other.keys()  # training is unchanged
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_without_a_key_training_does_not_start(configure: Configure, tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(to_dict(configure(runtime={"wandb": "digits"}))))
    done = start(file, tmp_path / "run", WANDB_BASE_URL="http://127.0.0.1:9")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "ConfigError: runtime.wandb 'digits'" in last
    assert "WANDB_MODE=offline" in last
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_missing_package_is_an_error_of_the_configuration(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingPackage, match=r"pip install 'metaformer\[wandb\]'"):
        WandbLog("digits", tmp_path, {}, print)
    monkeypatch.setattr("metaformer.training.check.find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match=r"runtime.wandb needs wandb: pip install 'metaformer\[wandb\]'"):
        check_config(configure(runtime={"wandb": "digits"}))
    check_config(configure())


def test_a_failing_service_does_not_stop_training(tmp_path: Path) -> None:
    class Failing:
        def log(self, figures: dict[str, float]) -> None:
            raise ConnectionError("gone")

        def finish(self) -> None:
            raise AssertionError("not asked again")

    lines: list[str] = []
    wandb_log = WandbLog.__new__(WandbLog)
    wandb_log.run, wandb_log.warn = Failing(), lines.append
    wandb_log.log("train", 1, 0, {"loss": 1.0})
    wandb_log.log("train", 2, 0, {"loss": 1.0})
    wandb_log.close()
    assert len(lines) == 1 and "gone" in lines[0] and "metrics.jsonl" in lines[0]


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


def test_the_page_shows_curves_images_classes_and_settings(configure: Configure, tmp_path: Path) -> None:
    train(configure(), tmp_path / "run")
    text = (tmp_path / "run" / "report.html").read_text()
    assert text.count("<svg") == 3 and text.count('<img src="data:image/jpeg;base64,') >= 10
    state = json.loads((tmp_path / "run" / "best" / "state.json").read_text())
    assert f"{state['metrics']['top1']:.2%}" in text
    assert "optim" in text and "poolformer_n" in text and "metaformer predict" in text
    assert "cat_max_ratio" not in text and "roi_batch_size" not in text  # of other tasks


@pytest.mark.parametrize("kind", ["parquet", "tar"])
def test_images_of_shards_are_shown(
    kind: str, configure: Configure, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_shards(pets, tmp_path / "shards", kind=kind, workers=1, progress=False)
    train(configure(schedule={"epochs": 1}, data={"root": str(tmp_path / "shards")}), tmp_path / "run")
    text = (tmp_path / "run" / "report.html").read_text()
    assert text.count('alt="image"') >= 10 and f"val/00000.{kind}: " in text
    shutil.rmtree(tmp_path / "shards")
    assert 'alt="image"' not in write_report(tmp_path / "run").read_text()


def test_the_page_grows_with_the_run(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is there after the first evaluation, and renewed no more often than it should be."""
    pages: list[str] = []
    evaluate = ClassificationTask.evaluate

    def evaluate_after_a_look(task: ClassificationTask, forward: Forward) -> Report:
        page = tmp_path / "run" / "report.html"
        pages.append(page.read_text() if page.exists() else "")
        return evaluate(task, forward)

    monkeypatch.setattr(ClassificationTask, "evaluate", evaluate_after_a_look)
    train(configure(schedule={"epochs": 3}), tmp_path / "run")
    steps = max(line["step"] for line in read_log(tmp_path / "run"))
    assert pages[0] == "" and f"step {steps // 3} of {steps}" in pages[1] == pages[2]
    assert f" of {steps}" not in (tmp_path / "run" / "report.html").read_text()
    assert capfd.readouterr().err.count("report.html") == 2


def test_a_run_without_best_weights_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="best"):
        write_report(tmp_path)


def test_a_page_that_cannot_be_written_ends_no_run(
    configure: Configure, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run/report.html").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"report\.html"):
        train(configure(schedule={"epochs": 3}), tmp_path / "run")
    lines = read_log(tmp_path / "run")
    assert [line["epoch"] for line in lines if line["kind"] == "eval"] == [1, 2, 3]
    assert "report.html" in capfd.readouterr().err
