"""The list of runs: which there are, in which order, and what pairs them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from metaformer.checkpoint.checkpoint import write_checkpoint
from metaformer.cli import main
from metaformer.data.sampler import Sample
from metaformer.distributed import World
from metaformer.errors import ConfigError
from metaformer.serialize import to_dict
from metaformer.study.arms import arm_task, build_arms, draft_arms, shuffle_labels
from metaformer.study.plan import CONTROLS
from metaformer.study.results import Arm, RunResult
from metaformer.study.runs import SHUFFLED_SEEDS, Run, planned_runs, run_config
from metaformer.study.study_dir import chosen_rates, tuned_as
from toys import build_task

MakePlan = Callable[..., Any]
RATES = [1e-3, 2e-3, 4e-3, 8e-3, 16e-3]


def runs_of(plan: Any) -> list[Run]:
    return list(planned_runs(plan, draft_arms(plan), {}))


def finals(runs: list[Run]) -> list[Run]:
    return [run for run in runs if run.role != "sweep"]


def test_every_network_is_tuned_alike_and_compared_on_every_seed(make_plan: MakePlan) -> None:
    plan = make_plan(learning_rates=RATES, sweep_seeds=[100, 101], seeds=[0, 1, 2], controls=list(CONTROLS))
    runs = runs_of(plan)
    assert len({run.name for run in runs}) == len(runs)
    tuned = {"pooling", "window", "control-identity", "control-random", "control-external"}
    for arm in draft_arms(plan):
        sweep = {(run.learning_rate, run.seed) for run in runs if run.arm == arm and run.role == "sweep"}
        assert sweep == (
            {(rate, seed) for rate in RATES for seed in (100, 101)} if arm.name in tuned else set()
        )
        seeds = [run.seed for run in finals(runs) if run.arm == arm]
        assert seeds == [0, 1, 2][: SHUFFLED_SEEDS if arm.control == "shuffled_labels" else None]
    assert {run.role for run in runs if run.arm.control} == {"sweep", "control"}


def test_any_beginning_of_the_list_holds_whole_pairs(make_plan: MakePlan) -> None:
    runs = runs_of(make_plan(learning_rates=RATES, seeds=[5, 6, 7], controls=["repeat"]))
    assert [run.learning_rate for run in runs[:2]] == [4e-3, 4e-3], "the middle rate first"
    later = finals(runs)
    assert runs == [*runs[: len(runs) - len(later)], *later]
    for end in range(len(later)):
        counts = [sum(run.arm.name == name for run in later[:end]) for name in ("pooling", "window")]
        assert counts[0] - counts[1] in (0, 1)
    assert [run.seed for run in later] == sorted(run.seed for run in later)


def test_controls_of_the_baseline_take_its_learning_rate(make_plan: MakePlan) -> None:
    plan = make_plan(controls=["repeat", "shuffled_labels", "identity"])
    rates = {"pooling": 1e-3, "window": 2e-3, "control-identity": 3e-3}
    found = {
        run.arm.name: run.learning_rate for run in finals(list(planned_runs(plan, draft_arms(plan), rates)))
    }
    assert found == {**rates, "control-repeat": 1e-3, "control-shuffled_labels": 1e-3}


def test_the_best_mean_on_validation_data_is_chosen(make_plan: MakePlan) -> None:
    plan = make_plan(learning_rates=[1e-3, 2e-3, 4e-3], sweep_seeds=[100, 101])
    figures = {1e-3: (50.0, 60.0), 2e-3: (90.0, None), 4e-3: (52.0, 58.0)}
    results = [
        RunResult(name="x", arm="pooling", role="sweep", learning_rate=rate, seed=seed, validation=value)
        for rate, values in figures.items()
        for seed, value in zip((100, 101), values, strict=True)
    ]
    assert chosen_rates(results, plan) == {"pooling": 1e-3}, "equal means: the smaller; a failed one: never"
    assert chosen_rates(results[:-1], plan) == {}, "not before the sweep is complete"
    failed = [replace(result, validation=None) for result in results]
    assert chosen_rates(failed, plan) == {"pooling": None}


def test_a_repeat_is_trained_with_a_seed_of_its_own(make_plan: MakePlan) -> None:
    plan = make_plan()
    runs = finals(list(planned_runs(plan, draft_arms(plan), {"pooling": 1e-3, "window": 1e-3})))
    seeds = {(run.arm.name, run.seed): run_config(plan, run).seed for run in runs}
    assert seeds["pooling", 1] == seeds["window", 1] == 1
    assert len({seed for (name, _), seed in seeds.items() if name == "control-repeat"} - {0, 1}) == 2


def final(plan: Any, arm: Arm, seed: int = 0) -> Any:
    return run_config(plan, Run("x", arm, "final", seed, 1e-3, tuned_as(arm, plan)))


def test_runs_of_a_seed_share_first_values_order_and_augmentation(make_plan: MakePlan) -> None:
    plan = make_plan()
    pooling, window, _ = build_arms(plan, 3)
    tasks = [build_task(final(plan, arm)) for arm in (pooling, window)]
    first, second = (task.model.state_dict() for task in tasks)
    shared = first.keys() & second.keys()
    assert {name.split(".")[0] for name in shared} == {"stem", "stages", "head"}
    assert all(torch.equal(first[name], second[name]) for name in shared)
    assert set(second) - shared == {name for name in second if "token_mixer" in name}
    options = {"batch_size": 6, "seed": 0, "rank": 0, "world": 1, "repeated_aug": 1, "accumulate": 1}
    orders = [list(task.sampler(**options)) for task in tasks]
    assert orders[0] == orders[1]
    images = [torch.stack([task.train[sample][0] for sample in orders[0][0]]) for task in tasks]
    assert torch.equal(*images)
    other = build_task(final(plan, pooling, 1))
    assert not torch.equal(other.train[Sample(0, 0)][0], tasks[0].train[Sample(0, 0)][0])


def test_shuffled_labels_are_those_of_other_images(make_plan: MakePlan) -> None:
    plan = make_plan(controls=["shuffled_labels"])
    pooling, _, shuffled = build_arms(plan, 3)
    plain = build_task(final(plan, pooling))
    tasks = [arm_task(plan, shuffled)(final(plan, shuffled, seed), World()) for seed in (0, 0, 1)]
    labels: list[Any] = [list(task.train.source.labels) for task in (plain, *tasks)]
    assert labels[1] == labels[2] != labels[3] and labels[0] not in labels[1:]
    assert all(sorted(found) == sorted(labels[0]) for found in labels)
    stream: Any = object()
    with pytest.raises(ConfigError, match="tar shards"):
        shuffle_labels(stream, 0)
    held: Any = tasks[0].evaluation.loader.dataset.source
    assert list(held.labels) == sorted(held.labels), "those of validation stay"


def test_other_commands_refuse_the_network_of_timm(
    make_plan: MakePlan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(controls=["external"], external="resnet10t")
    *_, arm = build_arms(plan, 3)
    config = run_config(plan, next(run for run in planned_runs(plan, [arm], {}) if run.arm == arm))
    task = arm_task(plan, arm)(config, World())
    state = {"card": task.card(), "config": to_dict(config)}
    best = write_checkpoint(tmp_path / "best", {"model": task.model.state_dict()}, state)
    others = {"predict": ["x.png"], "explain": ["x.png", f"--out={tmp_path / 'out'}"], "export": ["x.onnx"]}
    for command in ("evaluate", *others):
        assert main([command, str(best), *others.get(command, [])]) == 1
        line = capsys.readouterr().err.splitlines()[-1]
        assert str(best) in line and "holds resnet10t of timm, the control of a study" in line, command
