import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from metaformer.checkpoint.checkpoint import checkpoints
from metaformer.checkpoint.run_dir import RunDir, read_log
from metaformer.data.sampler import TrainSampler
from metaformer.errors import ConfigError, DataError, OutputError, TrainingError, WeightsError
from metaformer.serialize import to_dict
from metaformer.training.loop import RemainingBatches
from metaformer.training.train import train
from toys import Configure, Digest, build_task, equal_states, log_lines, tiny_config
from warm import python


def test_a_run_learns_and_writes_its_run_directory(configure: Configure, tmp_path: Path) -> None:
    config = configure(schedule={"epochs": 6}, optim={"lr": 1e-2}, evaluate={"crop": 1.0})
    result = train(config, tmp_path / "run")
    assert result.complete and result.steps == 6 * 4
    assert result.best >= 0.8, result
    names = {path.name for path in (tmp_path / "run").iterdir()}
    expected = {"config.json", "metrics.jsonl", "tensorboard", "checkpoints", "best", "report.html"}
    assert names - {".lock"} == expected
    assert json.loads((tmp_path / "run" / "config.json").read_text())["schedule"]["epochs"] == 6
    assert [line["step"] for line in log_lines(tmp_path / "run", "train")] == list(range(1, 25))
    evals = log_lines(tmp_path / "run", "eval")
    assert [line["epoch"] for line in evals] == [1, 2, 3, 4, 5, 6]
    assert max(line["top1"] for line in evals) == result.best


def test_a_run_that_finished_while_this_one_waited_is_not_overwritten(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(schedule={"epochs": 1})
    original = RunDir.writing

    def late(self: RunDir, patience: float | None = None) -> Any:
        """Another process held the lock, and has finished."""
        monkeypatch.setattr(RunDir, "writing", original)
        train(config, tmp_path)
        return original(self, patience)

    monkeypatch.setattr(RunDir, "writing", late)
    with pytest.raises(OutputError, match="holds a run already"):
        train(config, tmp_path)


def test_auto_skips_a_damaged_checkpoint_and_an_explicit_path_does_not(
    configure: Configure, tmp_path: Path, digest: Digest, capfd: pytest.CaptureFixture[str]
) -> None:
    config = configure(runtime={"save_every": 1})
    train(config, tmp_path)
    good = digest(tmp_path / "checkpoints" / "step_8")
    file = tmp_path / "checkpoints" / "step_8" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="step_8"):
        train(config, tmp_path, resume=str(file.parent))
    capfd.readouterr()
    train(config, tmp_path, resume="auto")
    printed = capfd.readouterr().err
    assert "step_8/model.safetensors" in printed and "step_7" in printed
    assert equal_states(good, digest(tmp_path / "checkpoints" / "step_8"))


def test_a_changed_configuration_is_named(
    configure: Configure, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(configure(schedule={"epochs": 1}), tmp_path)
    torch.set_num_threads(2)
    config = configure(schedule={"epochs": 2}, runtime={"threads": 2})
    train(config, tmp_path, resume="auto")
    printed = capfd.readouterr().err
    assert "schedule.epochs: 1 → 2" in printed and "threads: 1 → 2" in printed


def test_removed_best_weights_are_evaluated_again(configure: Configure, tmp_path: Path) -> None:
    result = train(configure(), tmp_path)
    shutil.rmtree(tmp_path / "best")
    again = train(configure(), tmp_path, resume="auto")
    assert again.complete and again.best_step == 8 and (tmp_path / "best" / "state.json").is_file()
    assert again.metrics == result.metrics


def test_only_the_newest_checkpoints_are_kept(configure: Configure, tmp_path: Path) -> None:
    train(configure(runtime={"save_every": 1, "keep": 2}), tmp_path)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_7", "step_8"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_after_the_step_with_a_checkpoint(
    configure: Configure, tmp_path: Path, digest: Digest, number: signal.Signals, status: int
) -> None:
    config = configure(schedule={"epochs": 500}, evaluate={"every": 1000}, data={"workers": 2})
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    script = (
        "import json, sys; from metaformer.config import TrainConfig; "
        "from metaformer.serialize import from_dict; from metaformer.training.train import train; "
        "train(from_dict(TrainConfig, json.load(open(sys.argv[1]))), sys.argv[2])"
    )
    run = tmp_path / "run"
    interpreter = [sys.executable] if number == signal.SIGTERM else python()  # one has an interpreter's exit
    process = subprocess.Popen(
        [*interpreter, "-W", "error", "-c", script, str(tmp_path / "config.json"), str(run)],
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(1200):
        if len(read_log(run)) >= 3:
            break
        time.sleep(0.05)
    process.send_signal(number)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == status and "--resume auto" in printed, printed
    newest = max((run / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))
    assert int(newest.name[5:]) == read_log(run)[-1]["step"]


BATCH_NORM: dict[str, Any] = {
    "model": {"overrides": {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "norm": "batch_norm"}},
    "ema": {"decay": 0.9},
    "runtime": {"save_every": 1},
}


HANG = """
import ctypes, json, sys
from metaformer import process
from metaformer.config import TrainConfig
from metaformer.serialize import from_dict
from metaformer.training.train import train
from metaformer.training.trainer import Trainer

mutex, method = ctypes.create_string_buffer(64), sys.argv[3]
original = getattr(Trainer, method)

def hanging(self, *args):
    result = original(self, *args)
    if self.step == int(sys.argv[4]):
        print("hangs", flush=True)
        while True:
            ctypes.CDLL(None).pthread_mutex_lock(mutex)  # C code that never comes back to Python
    return result

setattr(Trainer, method, hanging)
process.GRACE = 0.5
train(from_dict(TrainConfig, json.load(open(sys.argv[1]))), sys.argv[2])
"""


@pytest.mark.parametrize(
    ("method", "step", "saved"), [("_backward", 5, 5), ("forward", 8, 8), ("_backward", 4, 4)]
)
def test_a_signal_during_a_long_operation_saves_the_last_complete_step(
    configure: Configure, tmp_path: Path, digest: Digest, method: str, step: int, saved: int
) -> None:
    """The batch norm's statistics are those before the step that is cut."""
    overrides = {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16], "norm": "batch_norm"}
    config = configure(
        model={"drop_path_rate": 0.2, "head_dropout": 0.2, "overrides": overrides},
        augment={"mixup": 0.8, "cutmix": 1.0, "erase": 0.5},
        optim={"accumulate": 2, "clip": 1.0},
        ema={"decay": 0.9},
        runtime={"save_every": 0},
    )
    train(config, tmp_path / "whole")
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    args = [str(tmp_path / "config.json"), str(tmp_path / "cut"), method, str(step)]
    process = subprocess.Popen(
        [*python(), "-W", "error", "-c", HANG, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "hangs\n"
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 143, printed
    assert f"stopped by signal 15 after step {saved}" in printed and "--resume auto" in printed
    assert checkpoints(tmp_path / "cut" / "checkpoints")[0].name == f"step_{saved}"
    assert train(config, tmp_path / "cut", resume="auto").complete
    for name in ("best", "checkpoints/step_8"):
        assert equal_states(digest(tmp_path / "whole" / name), digest(tmp_path / "cut" / name))


def poison(monkeypatch: pytest.MonkeyPatch, what: str, steps: set[int]) -> dict[int, list[str]]:
    """Make input, loss or gradient non-finite in these steps; returns the images of each step."""
    from metaformer.tasks.classification.task import ClassificationTask

    original, files = ClassificationTask.losses, {}

    def poisoned(self: ClassificationTask, model: Any, batch: Any, moment: Any) -> Any:
        files[moment.step] = self.names(batch)
        if moment.step in steps and what == "input":
            batch.images[1] = float("nan")
        losses = original(self, model, batch, moment)
        if moment.step in steps and what == "loss":
            losses["loss"] = losses["loss"] * float("inf")
        if moment.step in steps and what == "gradient":
            losses["loss"].register_hook(lambda grad: grad * float("nan"))
        return losses

    monkeypatch.setattr(ClassificationTask, "losses", poisoned)
    return files


@pytest.mark.parametrize(
    ("what", "place"), [("input", "png"), ("loss", "the loss"), ("gradient", "head.fc.bias")]
)
def test_a_nonfinite_step_stops_the_run_and_is_not_taken(
    configure: Configure,
    tmp_path: Path,
    digest: Digest,
    monkeypatch: pytest.MonkeyPatch,
    what: str,
    place: str,
) -> None:
    config = configure(**BATCH_NORM)
    train(config, tmp_path / "good")
    files = poison(monkeypatch, what, {2})
    with pytest.raises(TrainingError, match=rf"step 2.* {what} .*{place}") as caught:
        train(config, tmp_path / "bad")
    text = str(caught.value)
    assert (files[2][1] if what == "input" else ", ".join(files[2])) in text and "\n" not in text
    good, bad = (digest(tmp_path / name / "checkpoints" / "step_2") for name in ("good", "bad"))
    assert equal_states(good, bad)
    assert not (tmp_path / "bad" / "checkpoints" / "step_3").exists()


def test_nonfinite_steps_can_be_skipped(
    configure: Configure, tmp_path: Path, digest: Digest, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {**BATCH_NORM, "runtime": {"on_nonfinite": "skip", "save_every": 1}}
    poison(monkeypatch, "input", {2, 3, 4})
    assert train(configure(**plan), tmp_path / "skip").steps == 8
    states = [digest(tmp_path / "skip" / "checkpoints" / f"step_{step}") for step in (2, 5)]
    tensors = [{k: v for k, v in one.items() if not k.startswith("random")} for one in states]
    assert equal_states(*tensors)  # running statistics and EMA too
    lines = log_lines(tmp_path / "skip", "nonfinite")
    assert [line["step"] for line in lines] == [2, 3, 4] and "input" in lines[0]["note"]
    poison(monkeypatch, "input", {2, 3, 4, 5})
    with pytest.raises(TrainingError, match=r"step 5: .* 4 "):
        train(configure(**plan), tmp_path / "many")


def test_nonfinite_weights_are_never_saved(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"optim\.lr"):
        train(
            configure(optim={"name": "sgd", "lr": 3e38, "weight_decay": 100.0}, runtime={"save_every": 1}),
            tmp_path,
        )
    assert not (tmp_path / "checkpoints").exists()


def test_an_overflow_in_float16_lowers_the_scale_and_is_no_error(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, "gradient", {1})
    train(configure(runtime={"amp": "fp16"}, schedule={"epochs": 1}), tmp_path / "once")
    lines = log_lines(tmp_path / "once", "train")
    assert [line["overflow"] for line in lines] == [0.0, 1.0, 0.0, 0.0]
    assert [("grad_norm" in line) for line in lines] == [True, False, True, True]
    poison(monkeypatch, "gradient", set(range(100)))
    with pytest.raises(TrainingError, match="gradient"):
        train(configure(runtime={"amp": "fp16"}, schedule={"epochs": 8}), tmp_path / "always")


def test_bad_images_are_an_error_or_skipped_up_to_a_share(
    configure: Configure, tmp_path: Path, pets: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    root = tmp_path / "pets"
    shutil.copytree(pets, root)
    bad = root / "train" / "bee" / "3.png"
    bad.write_bytes(bad.read_bytes()[:60])
    for how in ("error", "skip"):  # one of 24 is more than 0.1 %
        config = configure(data={"root": str(root), "on_bad_image": how})
        with pytest.raises(DataError, match="bee/3.png" if how == "error" else r"1 of 24 training images"):
            train(config, tmp_path / how)
        # the steps before are saved
        assert len(list((tmp_path / how / "checkpoints").iterdir())) == 1
    monkeypatch.setattr("metaformer.training.loop.BAD_SHARE", 0.05)
    assert train(config, tmp_path / "run").complete
    (line,) = log_lines(tmp_path / "run", "bad_image")
    assert str(bad) in line["note"] and str(bad) in capfd.readouterr().err
    state = json.loads((tmp_path / "run" / "checkpoints" / "step_8" / "state.json").read_text())
    assert len(state["bad_images"]) == 1
    val = root / "val" / "cat" / "1.png"
    val.write_bytes(b"")
    with pytest.raises(DataError, match=r"val/cat/1\.png: the file is empty"):
        train(config, tmp_path / "val")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_is_an_error(configure: Configure, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match=r"no permission|cannot create"):
        train(configure(), tmp_path)


def test_remaining_batches_are_those_of_the_whole_run() -> None:
    def batches(first: int) -> list[object]:
        sampler = TrainSampler(22, batch_size=4, seed=3, repeated_aug=2, accumulate=2)
        rest = RemainingBatches(sampler, first, 3 * sampler.steps)
        found = list(rest)
        assert len(found) == len(rest)
        return found

    whole = batches(0)
    assert len(whole) == 3 * 5 * 2
    for first in (1, 5, 7, 14, 15):
        assert batches(first) == whole[2 * first :]
    assert {sample.epoch for batch in whole for sample in batch} == {0, 1, 2}


def test_what_is_odd_about_the_data_is_said_in_the_log_and_in_the_report(
    patches: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(patches, tmp_path / "data")
    label_map = root / "annotations/training/extra.png"
    shutil.copy(root / "annotations/training/00.png", label_map)
    config = tiny_config("segment", root, schedule={"epochs": 1})
    run = train(config, tmp_path / "run").run
    text = f"{label_map}: label map without image"
    assert f"warning: {text}" in capfd.readouterr().err
    (line,) = log_lines(run, "data")
    assert (line["note"], line["step"]) == (text, 0) and line in read_log(run)[:2]
    page = (run / "report.html").read_text()
    assert "Notes on the data" in page and page.count(f"<li>{text}</li>") == 1


def test_a_resumed_run_needs_no_initial_weights(configure: Configure, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    torch.save(build_task(configure()).model.state_dict(), weights)
    own = {"model": {**to_dict(configure().model), "checkpoint": str(weights)}}
    train(configure(**own, schedule={"epochs": 1}), tmp_path / "run")
    weights.unlink()
    assert train(configure(**own, schedule={"epochs": 2}), tmp_path / "run", resume="auto").complete
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        train(configure(**own), tmp_path / "other")


def test_a_run_of_another_task_is_not_resumed(configure: Configure, detect_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(detect_run, tmp_path / "run", symlinks=True)
    with pytest.raises(ConfigError, match="detect"):
        train(configure(), run, resume="auto")


def test_data_of_another_task_are_told(configure: Configure, objects: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"object detection.*finetune/detect"):
        train(configure(data={"root": str(objects)}), tmp_path / "run")
