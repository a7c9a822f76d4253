"""Numbers that a run finds itself: its learning rate and its batch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metaformer.checkpoint.checkpoint import random_state
from metaformer.checkpoint.run_dir import RunDir
from metaformer.config import TrainConfig
from metaformer.distributed import World
from metaformer.errors import ConfigError, OutputError, TrainingError
from metaformer.tasks.base import Task
from metaformer.training import batch_size, range_test
from metaformer.training.batch_size import find_batch_size, largest_fitting, measure_peaks
from metaformer.training.check import check_config
from metaformer.training.range_test import RangeTest, smoothed, steepest
from metaformer.training.train import find_learning_rate, train
from toys import Configure, Digest, build_task, copied, equal_states, log_lines

RATES = np.geomspace(1e-6, 10, 100).tolist()
SHORT = 30
"""Steps of a range test here."""


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Range tests of fewer steps."""
    monkeypatch.setattr(range_test, "STEPS", SHORT)


def falling(at: float, noise: float = 0.0) -> list[float]:
    """Losses that fall from 2 to 1 around a rate, and rise a hundred times above it."""
    decades = np.log10(np.asarray(RATES) / at)
    losses = 1 + 1 / (1 + np.exp(6 * decades)) + np.exp(np.clip(6 * (decades - 2), None, 5))
    return (losses + noise * np.random.RandomState(0).randn(len(RATES))).tolist()


@pytest.mark.parametrize("noise", [0.0, 0.05])
@pytest.mark.parametrize("at", [1e-4, 1e-2])
def test_the_rate_is_where_the_loss_falls_fastest(at: float, noise: float) -> None:
    found = steepest(RATES, falling(at, noise))
    assert at / 2 < found < at * 2
    assert found == float(f"{found:.1e}")


@pytest.mark.parametrize(
    "losses",
    [[2.0] * 100, np.linspace(1, 3, 100).tolist(), (2 + np.random.RandomState(1).randn(100)).tolist()],
    ids=["constant", "rising", "noise"],
)
def test_a_loss_that_does_not_fall_is_an_error(losses: list[float]) -> None:
    with pytest.raises(TrainingError, match=r"optim\.lr auto: the loss does not fall .* give optim\.lr"):
        steepest(RATES, losses)


def test_smoothing_keeps_lines_level_and_shifts_nothing() -> None:
    assert smoothed([3.0] * 20) == pytest.approx([3.0] * 20)
    peak = [0.0] * 15 + [1.0] + [0.0] * 15
    assert int(smoothed(peak).argmax()) == 15 and smoothed(peak).max() < 0.2


def test_what_is_found_is_as_if_it_had_been_typed(
    configure: Configure, tmp_path: Path, digest: Digest, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain: dict[str, Any] = {
        "model": {"head_dropout": 0.2, "drop_path_rate": 0.2},
        "schedule": {"epochs": 1},
        "ema": {"decay": 0.5},
    }
    auto = {**plain, "optim": {"lr": "auto"}, "data": {"batch_size": "auto"}}
    run = train(configure(**auto), tmp_path / "auto", explain=False).run
    saved = json.loads((run / "config.json").read_text())
    lr, images = saved["optim"]["lr"], saved["data"]["batch_size"]
    typed = {**plain, "optim": {"lr": lr}, "data": {"batch_size": images}}
    other = train(configure(**typed), tmp_path / "typed", explain=False).run
    (last,) = (run / "checkpoints").iterdir()
    assert equal_states(digest(last), digest(other / "checkpoints" / last.name))
    lines = [line["note"] for line in log_lines(run, "auto")]
    assert [line.partition(":")[0] for line in lines] == [f"data.batch_size {images}", f"optim.lr {lr:g}"]
    assert all(line in log_lines(run, "start")[0]["note"] for line in lines)
    assert f"optim.lr {lr:g}: the loss falls fastest there" in (run / "report.html").read_text()
    assert not log_lines(other, "auto")
    for name in ("run_range_test", "find_batch_size"):
        monkeypatch.setattr(f"metaformer.training.train.{name}", None)  # a resumed run does not search
    longer = {**auto, "schedule": {"epochs": 2}}
    assert train(configure(**longer), run, resume="auto", explain=False).complete
    assert json.loads((run / "config.json").read_text())["optim"]["lr"] == lr
    assert train(configure(**longer), tmp_path / "fork", resume=str(last), explain=False).complete
    assert json.loads((tmp_path / "fork" / "config.json").read_text())["data"]["batch_size"] == images


def test_a_run_that_another_process_writes_is_refused_before_a_search(
    configure: Configure, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = configure(optim={"lr": "auto"}, data={"batch_size": "auto"})
    with RunDir(tmp_path / "run").writing(), pytest.raises(OutputError):
        train(config, tmp_path / "run", resume="auto")
    assert "auto" not in capfd.readouterr().err


def test_a_range_test_can_be_run_alone(configure: Configure, short: None) -> None:
    test = find_learning_rate(configure())
    assert isinstance(test, RangeTest) and 1e-6 < test.lr < 10
    assert len(test.rates) == len(test.losses) <= SHORT
    assert np.diff(np.log(test.rates)) == pytest.approx(np.log(1e7) / (SHORT - 1))


def build_with(change: Callable[[Task], object]) -> Callable[..., Task]:
    """What builds a run's task, changed."""

    def build(config: TrainConfig, world: World, stop: object = None) -> Task:
        task = build_task(config, world)
        change(task)
        return task

    return build


def test_networks_that_cannot_learn_are_named(configure: Configure, short: None) -> None:
    def flat(task: Task) -> None:
        task.losses = lambda model, batch, context: {  # type: ignore[method-assign]
            "loss": 0 * model(batch.images).sum() + 1
        }

    with pytest.raises(TrainingError, match=r"optim\.lr auto: the loss does not fall"):
        find_learning_rate(configure(), build=build_with(flat))

    def broken(task: Task) -> None:
        torch.nn.init.constant_(next(task.model.parameters()), float("nan"))

    with pytest.raises(TrainingError, match=r"optim\.lr auto: .* not finite"):
        find_learning_rate(configure(), build=build_with(broken))


def linear(fixed: float, each: float, limit: float = float("inf")) -> Callable[[int], float]:
    """Bytes of a step, which runs out of memory above a limit."""

    def measure(images: int) -> float:
        if fixed + each * images > limit:
            raise torch.OutOfMemoryError
        return fixed + each * images

    return measure


@pytest.mark.parametrize(
    ("measure", "budget", "expected"),
    [
        (linear(10, 2), 50, 20),
        (linear(45, 0.125), 50, 40),
        (linear(10, 2), 13, 0),
        (linear(10, 2), 9, 0),
        (linear(10, 2, limit=30), 1000, 8),  # more was promised than there is
        (linear(10, 2, limit=1), 50, 0),
    ],
)
def test_the_largest_batch_that_fits(measure: Callable[[int], float], budget: float, expected: int) -> None:
    tried: list[int] = []

    def count(images: int) -> float:
        tried.append(images)
        return measure(images)

    peaks = measure_peaks(count, budget, (2, 4, 8, 16, 32, 64))
    assert largest_fitting(peaks, budget) == expected
    assert all(images <= max(4, 2 * expected) for images in tried)


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_steps_on_a_cpu_are_estimated_from_two_small_ones(task: str, configure_task: Configure) -> None:
    config = configure_task(task)
    with batch_size._on_cpu(config, build_task(config), World(), lambda: False) as (measure, _):
        peaks = {images: measure(images) for images in (2, 4)}
        assert largest_fitting(peaks, measure(12)) == pytest.approx(12, abs=2)


def test_the_batch_is_limited_by_memory_epoch_and_use(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(optim={"accumulate": 2})
    task, there = build_task(config), 1 << 40
    before, random = copied(task.model), random_state(torch.device("cpu"))

    def found() -> tuple[int, str]:
        monkeypatch.setattr(batch_size, "available_memory", lambda: there)
        return find_batch_size(config, task, World(), lambda: False)

    images, line = found()
    assert images == 16 and "limited by an epoch of 24 images" in line
    monkeypatch.setattr(batch_size, "CPU_MOST", 3)
    images, line = found()
    assert images == 2 * 3 and "3 images in each pass, limited by what is useful on a CPU" in line
    there = 1000
    with pytest.raises(
        ConfigError, match=r"data\.batch_size auto: 2 images in each pass do not fit .*image_size"
    ):
        found()
    assert equal_states(before, copied(task.model))
    assert equal_states(random, random_state(torch.device("cpu")))


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"optim": {"lr": "fast"}}, r"lr: 'fast' must be a finite number or one of 'auto'"),
        ({"optim": {"lr": -1.0}}, r"optim\.lr: -1\.0 must be .* above 0, or auto"),
        ({"data": {"batch_size": 0}}, r"data\.batch_size: 0 must be .* or auto"),
        ({"data": {"batch_size": "auto"}, "runtime": {"parallel": "fsdp"}}, r"batch_size auto .* fsdp"),
    ],
)
def test_values_that_are_neither_numbers_nor_auto(
    configure: Configure, sections: dict[str, Any], named: str
) -> None:
    with pytest.raises(ConfigError, match=named):
        check_config(configure(**sections), world_size=2)


def test_auto_is_no_number_for_others(configure: Configure) -> None:
    config = configure(optim={"lr": "auto"}, data={"batch_size": "auto"})
    check_config(config)
    with pytest.raises(ConfigError, match=r"optim\.lr is auto"):
        _ = config.optim.peak_lr
    with pytest.raises(ConfigError, match=r"data\.batch_size is auto"):
        _ = config.data.step_images
