"""Callbacks, early stopping and frozen stages."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from metaformer.checkpoint.checkpoint import checkpoints
from metaformer.checkpoint.runs import find_runs
from metaformer.errors import ConfigError
from metaformer.tasks import TASKS
from metaformer.training.callbacks import Callback, TrainState
from metaformer.training.train import train
from toys import TINY, Configure, Digest, build_task, equal_states, log_lines


class Recorder(Callback):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[TrainState] = []
        self.epochs: list[TrainState] = []
        self.evaluations: list[TrainState] = []

    def on_step(self, state: TrainState) -> None:
        self.steps.append(state)

    def on_epoch(self, state: TrainState) -> None:
        self.epochs.append(state)

    def on_evaluate(self, state: TrainState) -> None:
        self.evaluations.append(state)


class Until(Callback):
    """Ends a run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, state: TrainState) -> bool:
        return state.step == self.step


@pytest.mark.parametrize("task", TASKS)
def test_callbacks_see_every_step_epoch_and_evaluation(
    task: str, configure_task: Configure, tmp_path: Path
) -> None:
    recorder = Recorder()
    result = train(
        configure_task(task, schedule={"epochs": 2, "steps": None}), tmp_path, callbacks=[recorder]
    )
    per_epoch = result.steps // 2
    assert [state.step for state in recorder.steps] == list(range(1, result.steps + 1))
    assert [state.epoch for state in recorder.steps] == [1] * per_epoch + [2] * per_epoch
    assert [state.step for state in recorder.epochs] == [per_epoch, result.steps]
    logged = log_lines(tmp_path, "train")
    for state, line in zip(recorder.steps, logged, strict=True):
        assert state.metrics["lr"] == line["lr"] and state.metrics["loss"] == line["loss"]
    assert [state.metrics[result.metric] for state in recorder.evaluations] == [
        line[result.metric] for line in log_lines(tmp_path, "eval")
    ]
    last = recorder.evaluations[-1]
    assert last.best == result.best and last.total == result.steps and last.run == tmp_path and last.main
    assert any(parameter.requires_grad for parameter in last.model.parameters())


def test_a_callback_ends_a_run_as_if_it_were_its_end(
    configure: Configure, tmp_path: Path, digest: Digest, capsys: pytest.CaptureFixture[str]
) -> None:
    config, recorder = configure(schedule={"epochs": 3}), Recorder()
    result = train(config, tmp_path, callbacks=[Until(3), recorder])
    assert [(state.step, dict(state.metrics)) for state in recorder.evaluations] == [(3, result.metrics)]
    assert result.complete and result.steps == 3 and "top1" in result.metrics
    assert (tmp_path / "report.html").is_file() and (tmp_path / "best").is_dir()
    assert [line["note"] for line in log_lines(tmp_path, "ended")] == [
        "ended after step 3 of 12: a callback asked for it"
    ]
    assert find_runs(tmp_path)[0].state == "complete"
    before = digest(tmp_path / "checkpoints" / "step_3")
    again = train(configure(schedule={"epochs": 9}), tmp_path, resume="auto")
    assert again.complete and again.steps == 3
    assert "the run has ended, a callback asked for it" in capsys.readouterr().err
    assert equal_states(before, digest(checkpoints(tmp_path / "checkpoints")[-1]))


def test_patience_ends_a_run_that_gets_no_better(
    configure: Configure, tmp_path: Path, digest: Digest
) -> None:
    """A learning rate near 0 leaves the metric where it is, and so the first evaluation is the best."""
    still = {
        "optim": {"lr": 1e-12},
        "schedule": {"epochs": 9, "patience": 2, "min_lr": 0.0, "warmup_lr": 0.0},
    }
    whole = train(configure(**still), tmp_path / "whole")
    assert whole.complete and whole.steps == 3 * 4 and whole.best_step == 4
    assert "no better top1 in 2 evaluations" in log_lines(tmp_path / "whole", "ended")[0]["note"]
    longer = train(configure(**still, evaluate={"every": 2}), tmp_path / "longer")
    assert longer.steps > whole.steps

    class Break(Callback):
        def on_step(self, state: TrainState) -> None:
            if state.step == 9:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(configure(**still), tmp_path / "broken", callbacks=[Break()])
    resumed = train(configure(**still), tmp_path / "broken", resume="auto")
    assert (resumed.steps, resumed.best_step) == (whole.steps, whole.best_step)
    assert equal_states(
        *(digest(tmp_path / name / "checkpoints" / "step_12") for name in ("whole", "broken"))
    )


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("stages", [1, 4])
def test_frozen_stages_keep_weights_and_statistics(
    stages: int, task: str, configure_task: Configure, tmp_path: Path
) -> None:
    model = {"freeze": stages, "overrides": {**TINY, "norm": "batch_norm"}}
    config = configure_task(task, model=model, schedule={"epochs": 1})
    before = build_task(config).model.state_dict()
    steps = train(config, tmp_path).steps
    after = load_file(tmp_path / "checkpoints" / f"step_{steps}" / "model.safetensors")
    parts = ("stem.", *(f"stages.{i}." for i in range(stages)))
    frozen = {name for name in before if any(f".{part}" in f".{name}" for part in parts)}
    assert any("running_mean" in name for name in frozen)
    assert [name for name in frozen if not torch.equal(before[name], after[name])] == []
    assert any(not torch.equal(before[name], after[name]) for name in before.keys() - frozen)


def test_more_stages_than_there_are_cannot_be_frozen(configure: Configure, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.freeze is 5: .* 4 stages"):
        train(configure(model={"freeze": 5}), tmp_path)
